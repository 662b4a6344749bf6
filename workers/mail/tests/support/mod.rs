//! An SMTP server over TCP: greeting, EHLO, STARTTLS or TLS from the start, AUTH, MAIL, RCPT, DATA, NOOP, RSET, QUIT. It keeps
//! what it took, and answers as it is told to.

#![allow(dead_code, reason = "each of its users needs a part")]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufStream},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

/// How it behaves.
#[derive(Clone, Default)]
pub(crate) struct Manner {
    /// Offers STARTTLS.
    pub(crate) starttls: bool,
    /// Speaks TLS from the start.
    pub(crate) tls: bool,
    /// Demands this login, as `user:password`.
    pub(crate) login: Option<&'static str>,
    /// What it answers to a recipient with this text in it.
    pub(crate) refuse: Option<(&'static str, &'static str)>,
    /// What it answers to a mail; `250 2.0.0 queued` by default.
    pub(crate) answer: Option<&'static str>,
    /// Hangs up after a mail, without an answer.
    pub(crate) hangs_up: bool,
    /// Says nothing any more from here on.
    pub(crate) mute_at: Option<&'static str>,
}

/// A mail that it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    pub(crate) data: String,
    pub(crate) encrypted: bool,
    pub(crate) login: Option<String>,
}

/// The server; it ends with the test's runtime.
pub(crate) struct Server {
    pub(crate) port: u16,
    /// The authority that its certificate is of, PEM.
    pub(crate) ca: String,
    pub(crate) connections: Arc<AtomicUsize>,
    taken: Arc<Mutex<Vec<Taken>>>,
}

impl Server {
    pub(crate) async fn new(manner: Manner) -> Self {
        let (ca, acceptor) = acceptor();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (taken, connections) = (Arc::new(Mutex::default()), Arc::new(AtomicUsize::new(0)));
        let server = Self { port, ca, connections: Arc::clone(&connections), taken: Arc::clone(&taken) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (manner, acceptor, taken) = (manner.clone(), acceptor.clone(), Arc::clone(&taken));
                // A client that hangs up ends its conversation.
                tokio::spawn(async move { drop(serve(stream, manner, acceptor, &taken).await) });
            }
        });
        server
    }

    pub(crate) fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A certificate for `localhost`, signed by itself.
fn acceptor() -> (String, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (made.cert.pem(), TlsAcceptor::from(Arc::new(config)))
}

async fn serve(
    stream: TcpStream,
    manner: Manner,
    acceptor: TlsAcceptor,
    taken: &Mutex<Vec<Taken>>,
) -> std::io::Result<()> {
    if manner.tls {
        let stream = acceptor.accept(stream).await?;
        return converse(&mut BufStream::new(stream), &manner, true, true, taken).await.map(drop);
    }
    let mut plain = BufStream::new(stream);
    if converse(&mut plain, &manner, false, true, taken).await? {
        let stream = acceptor.accept(plain.into_inner()).await?;
        converse(&mut BufStream::new(stream), &manner, true, false, taken).await?;
    }
    Ok(())
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), line: &str) -> std::io::Result<()> {
    stream.write_all(format!("{line}\r\n").as_bytes()).await?;
    stream.flush().await
}

/// One conversation; true: it goes on under TLS.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufStream<S>,
    manner: &Manner,
    encrypted: bool,
    greets: bool,
    taken: &Mutex<Vec<Taken>>,
) -> std::io::Result<bool> {
    if greets {
        say(stream, "220 mail.example ESMTP").await?;
    }
    let (mut login, mut from, mut to) = (None, String::new(), Vec::new());
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(false);
        }
        let line = line.trim_end();
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let verb = verb.to_ascii_uppercase();
        if manner.mute_at == Some(verb.as_str()) {
            std::future::pending::<()>().await;
        }
        let locked = manner.login.is_some() && login.is_none();
        let reply = match verb.as_str() {
            "EHLO" => {
                let starttls = if manner.starttls && !encrypted { "250-STARTTLS\r\n" } else { "" };
                format!("250-mail.example\r\n{starttls}250-8BITMIME\r\n250 AUTH PLAIN")
            }
            "STARTTLS" if manner.starttls && !encrypted => {
                say(stream, "220 go ahead").await?;
                return Ok(true);
            }
            "AUTH" => match manner.login {
                Some(expected) if decoded(rest) == Some(expected.to_owned()) => {
                    login = Some(expected.to_owned());
                    "235 welcome".to_owned()
                }
                _ => "535 5.7.8 wrong password".to_owned(),
            },
            "MAIL" if locked => "530 5.7.0 log in first".to_owned(),
            "MAIL" => {
                (from, to) = (rest.to_owned(), Vec::new());
                "250 ok".to_owned()
            }
            "RCPT" => match manner.refuse {
                Some((part, reply)) if rest.contains(part) => reply.to_owned(),
                _ => {
                    to.push(rest.trim_start_matches("TO:<").trim_end_matches('>').to_owned());
                    "250 ok".to_owned()
                }
            },
            "DATA" => {
                say(stream, "354 go on").await?;
                let data = data(stream).await?;
                if manner.answer.is_none() {
                    let (from, to, login) = (from.clone(), to.clone(), login.clone());
                    taken.lock().unwrap().push(Taken { from, to, data, encrypted, login });
                }
                if manner.hangs_up {
                    return Ok(false);
                }
                manner.answer.unwrap_or("250 2.0.0 queued").to_owned()
            }
            "NOOP" | "RSET" => "250 ok".to_owned(),
            "QUIT" => {
                say(stream, "221 bye").await?;
                return Ok(false);
            }
            _ => "500 what?".to_owned(),
        };
        say(stream, &reply).await?;
    }
}

/// `PLAIN` and base64 of `\0user\0password`, as `user:password`.
fn decoded(rest: &str) -> Option<String> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(rest.strip_prefix("PLAIN ")?).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    Some(text.trim_start_matches('\0').replace('\0', ":"))
}

/// Up to the dot that stands alone; dots that were doubled are single again.
async fn data(stream: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<String> {
    let mut data = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line == ".\r\n" {
            return Ok(data);
        }
        data.push_str(line.strip_prefix('.').unwrap_or(&line));
    }
}
