use serde_json::{Value, json};

use super::*;

const SETTINGS: &str = r#"
    senders = ["example.org"]
    from = "App <noreply@example.org>"
    headers = ["List-Unsubscribe"]
    max_recipients = 3
    max_attachments = 8
    smtp.host = "x"
"#;

/// The message of a job with these args besides recipient, subject and text.
fn built(args: Value) -> Result<String, String> {
    let mut all = json!({"to": "ada@example.net", "subject": "Hello", "text": "Hi"});
    let Value::Object(args) = args else { panic!("args are an object") };
    all.as_object_mut().unwrap().extend(args);
    let job: Email = serde_json::from_value(all).map_err(|error| error.to_string())?;
    let (message, _) = build(&job, "0199", 1, &toml::from_str(SETTINGS).unwrap())?;
    Ok(String::from_utf8(message.formatted()).unwrap())
}

/// Its header lines, without folds.
fn heads(message: &str) -> Vec<String> {
    let (head, _) = message.split_once("\r\n\r\n").unwrap();
    head.replace("\r\n ", " ").split("\r\n").map(str::to_owned).collect()
}

#[test]
fn a_message_says_what_the_job_says() {
    let message = built(json!({
        "to": ["Ada <ada@example.net>", "b@example.net"], "cc": "c@example.net", "reply_to": "help@example.org",
        "subject": "Grüße", "headers": {"list-unsubscribe": "<https://example.org/u>"},
    }))
    .unwrap();
    let heads = heads(&message);
    for line in [
        "From: App <noreply@example.org>",
        "Message-ID: <0199@example.org>",
        "To: Ada <ada@example.net>, b@example.net",
        "Cc: c@example.net",
        "Reply-To: help@example.org",
        "Subject: =?utf-8?b?R3LDvMOfZQ==?=",
        "List-Unsubscribe: <https://example.org/u>",
    ] {
        assert!(heads.iter().any(|found| found == line), "{line} in {heads:#?}");
    }
}

#[test]
fn who_is_in_bcc_is_a_recipient_and_not_in_the_message() {
    let args = json!({"to": "a@example.net", "bcc": ["b@example.net"], "subject": "x", "text": "y"});
    let job: Email = serde_json::from_value(args).unwrap();
    let (message, id) = build(&job, "0199", 2, &toml::from_str(SETTINGS).unwrap()).unwrap();
    let to: Vec<String> = message.envelope().to().iter().map(ToString::to_string).collect();
    assert_eq!(
        (to, id.as_str()),
        (vec!["a@example.net".to_owned(), "b@example.net".to_owned()], "<0199.2@example.org>")
    );
    assert!(!String::from_utf8(message.formatted()).unwrap().contains("b@example.net"));
}

#[test]
fn content_is_text_html_both_and_files() {
    let file = json!([{"name": "ä.txt", "content_type": "text/plain", "base64": "aGFsbG8="}]);
    for (args, parts) in [
        (json!({}), vec!["text/plain"]),
        (json!({"text": null, "html": "<p>"}), vec!["text/html"]),
        (json!({"html": "<p>"}), vec!["multipart/alternative", "text/plain", "text/html"]),
        (json!({"attachments": file}), vec!["multipart/mixed", "text/plain", "text/plain"]),
        (
            json!({"html": "<p>", "attachments": file}),
            vec!["multipart/mixed", "multipart/alternative", "text/plain", "text/html", "text/plain"],
        ),
    ] {
        let message = built(args).unwrap();
        let types = message.lines().filter_map(|line| line.strip_prefix("Content-Type: "));
        let types: Vec<&str> = types.map(|value| value.split(';').next().unwrap()).collect();
        assert_eq!(types, parts, "{message}");
    }
}

#[test]
fn nothing_of_a_job_begins_a_header() {
    for text in [
        "x\r\nBcc: evil@example.com",
        "x\nBcc: evil@example.com",
        "x\rBcc: evil@example.com",
        "x\0",
        "x\u{85}y",
    ] {
        let address = format!("{text} <ada@example.net>");
        for args in [
            json!({"subject": text}),
            json!({"to": address}),
            json!({"to": format!("ada@example.net{text}")}),
            json!({"cc": address}),
            json!({"bcc": address}),
            json!({"reply_to": address}),
            json!({"from": format!("{text} <a@example.org>")}),
            json!({"headers": {"List-Unsubscribe": text}}),
            json!({"attachments": [{"name": text, "content_type": "text/plain", "base64": ""}]}),
            json!({"attachments": [{"name": "x", "content_type": format!("text/plain; a={text}"), "base64": ""}]}),
        ] {
            let error = built(args.clone()).unwrap_err();
            assert!(error.contains("control character"), "{args}: {error}");
        }
        let error = built(json!({"headers": {format!("List-Unsubscribe{text}"): "x"}})).unwrap_err();
        assert!(error.contains("is not allowed"), "{error}");
    }
    // In the text it is text.
    let message = built(json!({"text": "x\r\n\r\nBcc: evil@example.com"})).unwrap();
    assert!(heads(&message).iter().all(|line| !line.starts_with("Bcc")), "{message}");
}

#[test]
fn what_is_wrong_is_said() {
    let file = |name: &str, content_type: &str, base64: &str| json!({"attachments": [{"name": name, "content_type": content_type, "base64": base64}]});
    for (args, part) in [
        (json!({"from": "a@example.com"}), "mail may be sent by example.org only"),
        (json!({"from": "nobody"}), "from: \"nobody\" is no address"),
        (json!({"to": []}), "to is empty"),
        (json!({"to": "ada"}), "to: \"ada\" is no address"),
        (json!({"to": ["a@b.c", "d@e.f"], "bcc": ["g@h.i", "j@k.l"]}), "there are 4 recipients; at most 3"),
        (json!({"text": null}), "neither text nor html"),
        (json!({"headers": {"X-Mine": "1"}}), "these are: List-Unsubscribe"),
        (json!({"subject": "x".repeat(999)}), "longer than 998"),
        (file("../x", "text/plain", ""), "a name is not empty"),
        (file("", "text/plain", ""), "a name is not empty"),
        (file("x", "what", ""), "no content type of a file"),
        (file("x", "multipart/mixed; boundary=x", ""), "no content type of a file"),
        (file("x", "text/plain", "*"), "attachment \"x\": "),
        (file("x", "text/plain", "MTIzNDU2Nzg5"), "more than 8 bytes together"),
        (json!({"subjekt": "x"}), "unknown field"),
    ] {
        let error = built(args.clone()).unwrap_err();
        assert!(error.contains(part), "{args}: {error}");
    }
}
