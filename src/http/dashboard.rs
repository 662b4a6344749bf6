//! `/`: the dashboard, pages for people on top of `/v1`.
//!
//! One document for all pages and its files, all from this binary: it asks for nothing elsewhere, and its policy forbids
//! it to. The pages are drawn in the browser and know nothing but what the calls of `/v1` answer to the session that asks,
//! so there is nothing here to be kept from anybody.
//!
//! The files are what is in `dashboard/`: plain HTML, CSS and ES modules. Nothing builds them.

use std::sync::LazyLock;

use axum::{
    body::Body,
    extract::Path,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};

use super::{
    etag,
    problem::{Code, Problem},
};

/// What the pages may load and do: their own files, and calls of this server. No inline script or style, and with
/// `require-trusted-types-for` no text that is read as HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// A file of the dashboard.
struct File {
    name: &'static str,
    media: &'static str,
    text: &'static str,
    tag: HeaderValue,
}

/// The files in `dashboard/`, each with its media type.
macro_rules! files {
    ($($media:ident: $($name:literal),+;)+) => {
        [$($(File::new($name, $media, include_str!(concat!("dashboard/", $name))),)+)+]
    };
}

static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    files! {
        HTML: "index.html";
        STYLE: "base.css", "pages.css";
        PICTURE: "icon.svg";
        SCRIPT: "main.js", "api.js", "bulk.js", "chart.js", "dialog.js", "dom.js", "exact.js", "form.js",
            "format.js", "json.js", "keys.js", "live.js", "rows.js", "theme.js", "overview.js", "jobs.js", "job.js",
            "queues.js", "dead.js", "workers.js", "kinds.js", "submit.js";
    }
    .into()
});

impl File {
    fn new(name: &'static str, media: &'static str, text: &'static str) -> Self {
        Self { name, media, text, tag: etag::of(text.as_bytes()) }
    }

    fn answer(&self, asked: &HeaderMap) -> Response {
        let mut response = etag::answer(asked, self.tag.clone(), || Response::new(Body::from(self.text)));
        let headers = response.headers_mut();
        for (name, value) in [
            (header::CONTENT_TYPE, self.media),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "same-origin"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// The answer with a file, or that there is none of this name.
fn answer(name: &str, asked: &HeaderMap) -> Response {
    match FILES.iter().find(|file| file.name == name) {
        Some(file) => file.answer(asked),
        None => Problem::new(Code::NotFound, "the dashboard has no such file").into_response(),
    }
}

/// A page: the same document for all of them, which draws the one that its address names.
pub(super) async fn page(headers: HeaderMap) -> Response {
    answer("index.html", &headers)
}

/// `GET /dashboard/{file}`.
pub(super) async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    answer(&name, &headers)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The texts in single or double quotes that stand behind `before`.
    fn quoted<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
        text.split(before).skip(1).filter_map(|rest| {
            let quote = rest.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
            rest[1..].split(quote).next()
        })
    }

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/dashboard");
        let there: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(there, FILES.iter().map(|file| file.name.to_owned()).collect());
    }

    #[test]
    fn what_a_file_asks_for_is_there() {
        let mut asked = BTreeSet::new();
        for file in FILES.iter() {
            match file.media {
                HTML => {
                    for target in quoted(file.text, "href=").chain(quoted(file.text, "src=")) {
                        asked.extend(target.strip_prefix("/dashboard/").map(str::to_owned));
                    }
                }
                SCRIPT => {
                    for target in quoted(file.text, " from ").chain(quoted(file.text, "import(")) {
                        asked.insert(target.strip_prefix("./").expect("a file beside it").to_owned());
                    }
                }
                _ => assert!(!file.text.contains("url("), "{}", file.name),
            }
        }
        let served: BTreeSet<String> = FILES.iter().map(|file| file.name.to_owned()).collect();
        assert_eq!(asked.difference(&served).collect::<Vec<_>>(), Vec::<&String>::new());
        let unused: Vec<&String> = served.difference(&asked).filter(|name| *name != "index.html").collect();
        assert_eq!(unused, Vec::<&String>::new());
    }

    #[test]
    fn nothing_is_inline_comes_from_elsewhere_or_reads_text_as_html() {
        assert!(!POLICY.contains("unsafe") && !POLICY.contains("http"));
        for file in FILES.iter() {
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "DOMParser",
                "style=\"",
                "onclick=",
                "onload=",
                "@import",
            ] {
                assert!(!file.text.contains(word), "{}: {word}", file.name);
            }
            for (place, _) in file.text.match_indices("://") {
                let text = &file.text[place.saturating_sub(10)..(place + 25).min(file.text.len())];
                assert!(text.contains("http://www.w3.org"), "{}: {text}", file.name);
            }
        }
        let page = FILES.iter().find(|file| file.name == "index.html").unwrap().text;
        let scripts = ["<script src=", "<script type=\"module\" src="].map(|tag| page.matches(tag).count());
        assert_eq!(page.matches("<script").count(), scripts.iter().sum::<usize>(), "none is inline");
        assert!(!page.contains("<style"));
    }
}
