//! Mail over SMTP. The connection goes to a checked address; the message id is the dedupe key.

use super::{Delivery, Verdict};
use crate::markup::one_line;
use lettre::{
    Address,
    message::{Mailbox, Message as Envelope, header},
    transport::smtp::{
        Error,
        authentication::{Credentials, Mechanism},
        client::{AsyncSmtpConnection, Certificate, TlsParameters},
        commands::{Data, Mail as MailFrom, Rcpt},
        extension::{ClientId, Extension, MailBodyParameter, MailParameter},
    },
};
use std::time::Duration;
use tokio::time::timeout;
use windlass_domain::{catalog::SmtpTls, event::Severity};
use windlass_runtime::{Outbound, outbound::OutboundError};

const CONNECT: Duration = Duration::from_secs(5);
const FAREWELL: Duration = Duration::from_secs(1);

/// A mail to send.
#[derive(Debug)]
pub(crate) struct Mail {
    host: String,
    port: u16,
    tls: SmtpTls,
    from: Address,
    to: Vec<Address>,
    login: Option<(String, String)>,
    /// As it goes over the wire.
    bytes: Vec<u8>,
}

impl Mail {
    pub(super) fn new(
        server: &str,
        tls: SmtpTls,
        from: &str,
        to: &[String],
        login: Option<(String, String)>,
        d: &Delivery<'_>,
    ) -> Result<Mail, String> {
        let (host, port) = server
            .rsplit_once(':')
            .and_then(|(h, p)| Some((h.trim_start_matches('[').trim_end_matches(']'), p.parse::<u16>().ok()?)))
            .filter(|(h, p)| !h.is_empty() && *p != 0)
            .ok_or_else(|| format!("`{server}` is no mail server: write `host:port`"))?;
        let mailbox = |s: &str| s.parse::<Mailbox>().map_err(|e| format!("`{s}` is no mail address: {e}"));
        let sender = mailbox(from)?;
        let to = to.iter().map(|s| mailbox(s)).collect::<Result<Vec<_>, _>>()?;
        if to.is_empty() {
            return Err("the channel names no recipient in `to`".into());
        }
        let m = d.message;
        let loud = match m.severity {
            Severity::Alert => "[ALERT] ",
            Severity::Action => "[ACTION NEEDED] ",
            Severity::Notice | Severity::Info => "",
        };
        let mut mail = Envelope::builder()
            .from(sender.clone())
            .date(d.now.into())
            .message_id(Some(format!("<{}@{}>", d.key, sender.email.domain())))
            .subject(one_line(&format!("{loud}{}", m.title), 200))
            .header(header::ContentType::TEXT_PLAIN)
            .header(AutoSubmitted);
        for r in &to {
            mail = mail.to(r.clone());
        }
        let mail = mail
            .body(format!("{}\nwindlass {}\n", m.text, d.key))
            .map_err(|e| format!("the mail cannot be written: {e}"))?;
        Ok(Mail {
            host: host.into(),
            port,
            tls,
            from: sender.email,
            to: to.into_iter().map(|m| m.email).collect(),
            login,
            bytes: mail.formatted(),
        })
    }

    /// Sends it, within the deadline.
    pub(crate) async fn send(&self, outbound: &Outbound, extra_roots: &[Certificate], deadline: Duration) -> Verdict {
        match timeout(deadline, self.exchange(outbound, extra_roots)).await {
            Err(_) => Verdict::retry(format!("no answer within {} s", deadline.as_secs_f64())),
            Ok(Ok((verdict, mut connection))) => {
                // The mail is taken or refused by now; how the farewell goes changes nothing.
                let _ = timeout(FAREWELL, connection.quit()).await;
                verdict
            }
            Ok(Err(Failed::Address(e))) if !e.retryable() => Verdict::permanent(e.to_string()),
            Ok(Err(Failed::Address(e))) => Verdict::retry(chain(&e)),
            Ok(Err(Failed::Smtp(e))) if e.is_permanent() => Verdict::permanent(chain(&e)),
            Ok(Err(Failed::Smtp(e))) => Verdict::retry(chain(&e)),
        }
    }

    async fn exchange(
        &self,
        outbound: &Outbound,
        extra_roots: &[Certificate],
    ) -> Result<(Verdict, AsyncSmtpConnection), Failed> {
        // The checked addresses are what is dialled: a second look-up could answer something else.
        let addresses = outbound.resolve(&self.host, self.port).await.map_err(Failed::Address)?;
        let hello = ClientId::default();
        let tls = || {
            let roots = extra_roots.iter().cloned();
            roots.fold(TlsParameters::builder(self.host.clone()), |b, c| b.add_root_certificate(c)).build_rustls()
        };
        let implicit = if self.tls == SmtpTls::Implicit { Some(tls()?) } else { None };
        let mut c =
            AsyncSmtpConnection::connect_tokio1(addresses.as_slice(), Some(CONNECT), &hello, implicit, None).await?;
        if self.tls == SmtpTls::Starttls {
            // A server without STARTTLS, or somebody between who hides it, gets neither the password nor the mail.
            c.starttls(tls()?, &hello).await?;
        }
        if let Some((user, password)) = &self.login {
            let credentials = Credentials::new(user.clone(), password.clone());
            c.auth(&[Mechanism::Plain, Mechanism::Login], &credentials).await?;
        }
        let verdict = self.transact(&mut c).await?;
        Ok((verdict, c))
    }

    /// One mail to all recipients. A recipient that is refused does not keep the mail from the others.
    async fn transact(&self, c: &mut AsyncSmtpConnection) -> Result<Verdict, Failed> {
        let mut options = vec![];
        if !self.bytes.is_ascii() && c.server_info().supports_feature(Extension::EightBitMime) {
            options.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        let foreign = |a: &Address| !AsRef::<str>::as_ref(a).is_ascii();
        if (foreign(&self.from) || self.to.iter().any(foreign))
            && c.server_info().supports_feature(Extension::SmtpUtfEight)
        {
            options.push(MailParameter::SmtpUtfEight);
        }
        c.command(MailFrom::new(Some(self.from.clone()), options)).await?;
        let mut refused: Vec<(Address, Error)> = vec![];
        for to in &self.to {
            match c.command(Rcpt::new(to.clone(), vec![])).await {
                Ok(_) => {}
                Err(e) if e.is_permanent() || e.is_transient() => refused.push((to.clone(), e)),
                Err(e) => return Err(e.into()),
            }
        }
        let note = refused.iter().map(|(a, e)| format!("{a}: {}", chain(e))).collect::<Vec<_>>().join("; ");
        if refused.len() == self.to.len() {
            let again = refused.iter().any(|(_, e)| e.is_transient());
            let reason = format!("no recipient was taken: {note}");
            return Ok(if again { Verdict::retry(reason) } else { Verdict::permanent(reason) });
        }
        c.command(Data).await?;
        c.message(&self.bytes).await?;
        Ok(Verdict::Sent { note: (!note.is_empty()).then(|| format!("not all recipients were taken: {note}")) })
    }
}

#[derive(Debug)]
enum Failed {
    Address(OutboundError),
    Smtp(Error),
}

impl From<Error> for Failed {
    fn from(e: Error) -> Failed {
        Failed::Smtp(e)
    }
}

fn chain(e: &dyn std::error::Error) -> String {
    let mut out = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        let text = c.to_string();
        if !out.contains(&text) {
            out = format!("{out}: {text}");
        }
        cause = c.source();
    }
    out
}

/// Keeps out-of-office answers away (RFC 3834).
#[derive(Debug, Clone, Copy)]
struct AutoSubmitted;

impl header::Header for AutoSubmitted {
    fn name() -> header::HeaderName {
        header::HeaderName::new_from_ascii_str("Auto-Submitted")
    }
    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }
    fn display(&self) -> header::HeaderValue {
        header::HeaderValue::new(Self::name(), "auto-generated".into())
    }
}
