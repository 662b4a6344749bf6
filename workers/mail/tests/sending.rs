//! Mail to a real SMTP server, as a job sends it: the handler, without a broker.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by unwrapping, also in its helpers"
)]

mod support;

use hopline::{
    job::Verdict,
    testing::{self, Tested},
    worker::Outcome,
};
use hopline_worker_mail::{
    Mail, Settings,
    email::{self, Email, Sent},
};
use serde_json::{Value, json};

use self::support::{Manner, Server};

/// A worker of this server; its settings besides.
fn mail(server: &Server, smtp: &str) -> Mail {
    let name = hopline::JobId::new();
    let [ca, file] =
        ["pem", "toml"].map(|kind| std::env::temp_dir().join(format!("hopline-mail-{name}.{kind}")));
    std::fs::write(&ca, &server.ca).unwrap();
    let smtp = smtp.replace("CA", &format!("ca = {ca:?}"));
    let text = format!(
        "senders = [\"example.org\"]\nfrom = \"noreply@example.org\"\n[smtp]\nport = {}\n{smtp}",
        server.port
    );
    std::fs::write(&file, text).unwrap();
    let mail = Mail::new(Settings::read(&file, None).unwrap());
    std::fs::remove_file(file).unwrap();
    std::fs::remove_file(ca).unwrap();
    mail.unwrap()
}

const PLAIN: &str = "host = \"127.0.0.1\"\ntls = \"none\"\ntimeout = \"5s\"";

async fn send(mail: &Mail, args: Value) -> Tested {
    let mut all =
        json!({"to": ["ada@example.net", "bob@example.net"], "subject": "Grüße", "text": "Hallo\n.\n..Ende"});
    all.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
    let job: Email = serde_json::from_value(all).unwrap();
    testing::run(email::send, job).state(mail.clone()).await
}

fn failure(tested: &Tested) -> (Verdict, &str, &str) {
    match &tested.outcome {
        Outcome::Failed(error) => (error.verdict(), error.code(), error.message()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_mail_arrives_whole_and_its_connection_is_used_again() {
    let server = Server::new(Manner::default()).await;
    let mail = mail(&server, PLAIN);
    let args = json!({"bcc": "eve@example.net", "attachments": [{"name": "a.bin", "content_type": "application/x-a", "base64": "AAH/"}]});
    let sent: Sent = send(&mail, args).await.output().unwrap();
    assert_eq!((sent.recipients, sent.response.as_str()), (3, "2.0.0 queued"));
    let [taken] = &server.taken()[..] else { panic!("{:?}", server.taken()) };
    assert!(taken.from.starts_with("FROM:<noreply@example.org>"), "{taken:?}");
    assert_eq!(taken.to, ["ada@example.net", "bob@example.net", "eve@example.net"]);
    assert!(taken.data.contains(&format!("Message-ID: {}\r\n", sent.message_id)), "{}", taken.data);
    assert!(sent.message_id.ends_with("@example.org>"), "{sent:?}");
    assert!(taken.data.contains("Hallo\r\n.\r\n..Ende") && !taken.data.contains("eve@"), "{}", taken.data);
    assert!(taken.data.contains("AAH/"), "{}", taken.data);
    send(&mail, json!({})).await.output::<Sent>().unwrap();
    assert_eq!((server.taken().len(), server.connections()), (2, 1));
}

#[tokio::test]
async fn starttls_and_tls_encrypt_and_the_login_is_said_after_that() {
    for (manner, tls) in [
        (Manner { starttls: true, login: Some("me:secret"), ..Manner::default() }, "starttls"),
        (Manner { tls: true, login: Some("me:secret"), ..Manner::default() }, "tls"),
    ] {
        let server = Server::new(manner).await;
        let login = format!("host = \"localhost\"\ntls = \"{tls}\"\nuser = \"me\"\npassword = \"secret\"");
        send(&mail(&server, &format!("{login}\nCA")), json!({})).await.output::<Sent>().unwrap();
        let taken = server.taken();
        assert!(taken.len() == 1 && taken[0].encrypted, "{taken:?}");
        assert_eq!(taken[0].login.as_deref(), Some("me:secret"));
        // A certificate that nobody vouches for.
        let tested = send(&mail(&server, &login), json!({})).await;
        let (verdict, code, message) = failure(&tested);
        assert_eq!((verdict, code), (Verdict::Retry, "smtp_connection"), "{message}");
        let tested =
            send(&mail(&server, &format!("{}\nCA", login.replace("secret", "wrong"))), json!({})).await;
        let (verdict, code, message) = failure(&tested);
        assert_eq!((verdict, code), (Verdict::Retry, "smtp_535"), "{message}");
        assert!(message.contains("wrong password") && server.taken().len() == 1, "{message}");
    }
}

#[tokio::test]
async fn nothing_is_said_in_the_clear_where_starttls_is_demanded() {
    let server = Server::new(Manner { login: Some("me:secret"), ..Manner::default() }).await;
    let tested =
        send(&mail(&server, "host = \"localhost\"\nuser = \"me\"\npassword = \"secret\"\nCA"), json!({}))
            .await;
    let (verdict, code, message) = failure(&tested);
    assert_eq!((verdict, code), (Verdict::Retry, "smtp_connection"), "{message}");
    assert!(message.contains("STARTTLS") && server.taken().is_empty(), "{message}");
}

#[tokio::test]
async fn what_the_server_says_decides() {
    let refuse = |reply| Manner { refuse: Some(("bob", reply)), ..Manner::default() };
    let answer = |reply| Manner { answer: Some(reply), ..Manner::default() };
    for (manner, verdict, code, words) in [
        (refuse("550 5.1.1 no such user here"), Verdict::Fatal, "smtp_550", "5.1.1 no such user here"),
        (refuse("450 4.2.1 come back later"), Verdict::Retry, "smtp_450", "4.2.1 come back later"),
        (answer("554 5.7.1 this is spam"), Verdict::Fatal, "smtp_554", "5.7.1 this is spam"),
        (answer("451 4.3.0 no room"), Verdict::Retry, "smtp_451", "4.3.0 no room"),
        (
            Manner { login: Some("me:x"), ..Manner::default() },
            Verdict::Retry,
            "smtp_530",
            "5.7.0 log in first",
        ),
    ] {
        let server = Server::new(manner).await;
        let tested = send(&mail(&server, PLAIN), json!({})).await;
        let (got, name, message) = failure(&tested);
        assert_eq!((got, name), (verdict, code), "{message}");
        assert!(message.ends_with(words) && server.taken().is_empty(), "{message}");
    }
}

#[tokio::test]
async fn who_is_silent_or_gone_is_tried_again_and_not_kept() {
    let server = Server::new(Manner { hangs_up: true, ..Manner::default() }).await;
    let worker = mail(&server, PLAIN);
    for _ in 0..2 {
        let tested = send(&worker, json!({})).await;
        let (verdict, code, message) = failure(&tested);
        assert_eq!((verdict, code), (Verdict::Retry, "smtp_no_answer"), "{message}");
    }
    assert_eq!(server.connections(), 2);
    for mute_at in ["EHLO", "DATA"] {
        let server = Server::new(Manner { mute_at: Some(mute_at), ..Manner::default() }).await;
        let tested = send(&mail(&server, &PLAIN.replace("5s", "1s")), json!({})).await;
        let (verdict, code, message) = failure(&tested);
        assert_eq!(
            (verdict, code, message),
            (Verdict::Retry, "timeout", "the mail server took more than 1 s")
        );
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Server::new(Manner::default()).await;
    server.port = closed;
    let tested = send(&mail(&server, PLAIN), json!({})).await;
    let (verdict, code, message) = failure(&tested);
    assert_eq!((verdict, code), (Verdict::Retry, "smtp_connection"), "{message}");
}
