//! A real SMTP server that takes one mail a connection and remembers it. Blocking, on threads of its own.

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

pub(crate) const CERTIFICATE: &str = include_str!("mail.cert.pem");
const KEY: &str = include_str!("mail.key.pem");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    None,
    Starttls,
    Implicit,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Behaviour {
    /// Answer to the next mails' DATA, before it is taken as usual.
    pub(crate) data_replies: Vec<&'static str>,
    /// Recipients refused with this answer.
    pub(crate) refuse: Vec<(&'static str, &'static str)>,
    pub(crate) auth_reply: Option<&'static str>,
    pub(crate) hang: bool,
    /// Takes the mail and then never answers QUIT.
    pub(crate) no_farewell: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    pub(crate) auth: Option<String>,
    pub(crate) encrypted: bool,
    pub(crate) text: String,
}

#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) port: u16,
    pub(crate) mails: Arc<Mutex<Vec<Received>>>,
    /// Every command line that came, in clear or not.
    pub(crate) commands: Arc<Mutex<Vec<String>>>,
}

impl Sink {
    pub(crate) fn start(tls: Tls, behaviour: Behaviour) -> Sink {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
        let port = listener.local_addr().expect("address").port();
        let (mails, commands) = (Arc::<Mutex<Vec<Received>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let behaviour = Arc::new(Mutex::new(behaviour));
        let (m, c) = (Arc::clone(&mails), Arc::clone(&commands));
        // Ends with the test process; it blocks in `accept` and holds nothing.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (m, c, b) = (Arc::clone(&m), Arc::clone(&c), Arc::clone(&behaviour));
                std::thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
                    let _ = session(stream, tls, &m, &c, &b);
                });
            }
        });
        Sink { port, mails, commands }
    }
    pub(crate) fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
    pub(crate) fn mails(&self) -> Vec<Received> {
        self.mails.lock().expect("lock").clone()
    }
    pub(crate) fn commands(&self) -> Vec<String> {
        self.commands.lock().expect("lock").clone()
    }
}

trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

fn encrypt(stream: TcpStream) -> std::io::Result<Box<dyn Wire>> {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).expect("certificate");
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).expect("key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("config");
    let c = ServerConnection::new(Arc::new(config)).map_err(std::io::Error::other)?;
    Ok(Box::new(StreamOwned::new(c, stream)))
}

fn session(
    stream: TcpStream,
    tls: Tls,
    mails: &Mutex<Vec<Received>>,
    commands: &Mutex<Vec<String>>,
    behaviour: &Mutex<Behaviour>,
) -> std::io::Result<()> {
    let mut encrypted = tls == Tls::Implicit;
    let raw = stream.try_clone()?;
    let first: Box<dyn Wire> = if encrypted { encrypt(stream)? } else { Box::new(stream) };
    let mut wire = BufReader::new(first);
    let say = |w: &mut BufReader<Box<dyn Wire>>, line: &str| {
        w.get_mut().write_all(format!("{line}\r\n").as_bytes())?;
        w.get_mut().flush()
    };
    let b = behaviour.lock().expect("lock").clone();
    if b.hang {
        let mut sink = [0; 64];
        while wire.read(&mut sink)? > 0 {}
        return Ok(());
    }
    say(&mut wire, "220 sink ESMTP")?;
    let (mut from, mut to, mut auth) = (String::new(), vec![], None);
    loop {
        let mut line = String::new();
        if wire.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end().to_owned();
        commands.lock().expect("lock").push(line.clone());
        let upper = line.to_ascii_uppercase();
        let angle = |l: &str| l.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
        if upper.starts_with("EHLO") {
            let starttls = if tls == Tls::Starttls && !encrypted { "250-STARTTLS\r\n" } else { "" };
            say(&mut wire, &format!("250-sink\r\n{starttls}250-8BITMIME\r\n250 AUTH PLAIN LOGIN"))?;
        } else if upper == "STARTTLS" {
            say(&mut wire, "220 go")?;
            wire = BufReader::new(encrypt(raw.try_clone()?)?);
            encrypted = true;
        } else if let Some(plain) = line.strip_prefix("AUTH PLAIN ") {
            auth = Some(plain.to_owned());
            say(&mut wire, b.auth_reply.unwrap_or("235 ok"))?;
        } else if upper.starts_with("MAIL FROM") {
            from = angle(&line);
            say(&mut wire, "250 ok")?;
        } else if upper.starts_with("RCPT TO") {
            let r = angle(&line);
            match b.refuse.iter().find(|(who, _)| *who == r) {
                Some((_, reply)) => say(&mut wire, reply)?,
                None => {
                    to.push(r);
                    say(&mut wire, "250 ok")?;
                }
            }
        } else if upper == "DATA" {
            say(&mut wire, "354 go")?;
            let mut text = String::new();
            loop {
                let mut l = String::new();
                if wire.read_line(&mut l)? == 0 {
                    return Ok(());
                }
                if l == ".\r\n" {
                    break;
                }
                text.push_str(&l);
            }
            let scripted = {
                let mut b = behaviour.lock().expect("lock");
                (!b.data_replies.is_empty()).then(|| b.data_replies.remove(0))
            };
            let received = Received { from: from.clone(), to: to.clone(), auth: auth.clone(), encrypted, text };
            mails.lock().expect("lock").push(received);
            say(&mut wire, scripted.unwrap_or("250 taken"))?;
        } else if upper == "QUIT" && b.no_farewell {
            continue;
        } else if upper == "QUIT" {
            return say(&mut wire, "221 bye");
        } else {
            say(&mut wire, "502 what?")?;
        }
    }
}
