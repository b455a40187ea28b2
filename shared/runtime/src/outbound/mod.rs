//! The HTTP client for addresses that people type in: webhook targets, `http.request` steps. It refuses to reach the
//! inside of the network, and checks the address it really connects to, so that a name cannot change between check and use.

pub mod address;

use address::{Guard, Refused};
use futures::StreamExt;
use ipnet::IpNet;
use reqwest::{
    Method, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::HeaderMap,
    redirect,
};
use std::{error::Error as StdError, future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_MAX_RESPONSE: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error("`{url}` is not an address that can be called: {reason}")]
    Url { url: String, reason: String },
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the name `{host}` has no address")]
    Resolve {
        host: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{host}` did not answer within {seconds} s")]
    Timeout { host: String, seconds: f64 },
    #[error("cannot connect to `{host}`")]
    Connect {
        host: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the exchange with `{host}` broke off")]
    Exchange {
        host: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("`{host}` sent more than {max} bytes")]
    TooLarge { host: String, max: u64 },
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}

impl OutboundError {
    /// Whether the same call may succeed later. An address that is refused or unusable stays so.
    pub fn retryable(&self) -> bool {
        match self {
            OutboundError::Url { .. } | OutboundError::Refused(_) | OutboundError::TooLarge { .. } => false,
            OutboundError::Resolve { .. }
            | OutboundError::Timeout { .. }
            | OutboundError::Connect { .. }
            | OutboundError::Exchange { .. }
            | OutboundError::Client(_) => true,
        }
    }

    /// Whether the far side may have received the request: then only a call it can recognise may be repeated.
    pub fn maybe_received(&self) -> bool {
        matches!(self, OutboundError::Timeout { .. } | OutboundError::Exchange { .. })
    }
}

/// A request. Nothing of the caller's own headers is added but a user agent.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub url: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// From the start of the connection to the end of the response.
    pub timeout: Duration,
    /// The response is cut here.
    pub max_response: usize,
}

impl Request {
    pub fn new(method: Method, url: impl Into<String>) -> Request {
        Request {
            method,
            url: url.into(),
            headers: HeaderMap::new(),
            body: vec![],
            timeout: DEFAULT_TIMEOUT,
            max_response: DEFAULT_MAX_RESPONSE,
        }
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// The body was longer than `max_response`.
    pub truncated: bool,
}

/// How names become addresses. Production uses the system's resolver.
pub trait Lookup: Send + Sync + 'static {
    fn lookup(&self, host: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>>;
}

/// The system's resolver.
#[derive(Debug, Clone, Copy)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, host: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.collect()) })
    }
}

/// The resolver inside the HTTP client: what it returns is what the client connects to, and it returns only checked
/// addresses. One bad address refuses the name: a name that points inside and outside at once is an attack.
struct Checked {
    guard: Arc<Guard>,
    lookup: Arc<dyn Lookup>,
}

impl Checked {
    async fn addresses(guard: &Guard, lookup: &dyn Lookup, host: &str) -> Result<Vec<SocketAddr>, OutboundError> {
        let not_found = |source| OutboundError::Resolve { host: host.to_owned(), source };
        let all = lookup.lookup(host.to_owned()).await.map_err(not_found)?;
        if all.is_empty() {
            return Err(not_found(std::io::ErrorKind::NotFound.into()));
        }
        for a in &all {
            guard.check(host, a.ip())?;
        }
        Ok(all)
    }
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, lookup) = (Arc::clone(&self.guard), Arc::clone(&self.lookup));
        Box::pin(async move {
            let all = Checked::addresses(&guard, lookup.as_ref(), name.as_str()).await?;
            Ok(Box::new(all.into_iter()) as Addrs)
        })
    }
}

/// The guarded client. Cheap to clone.
#[derive(Clone)]
pub struct Outbound {
    client: reqwest::Client,
    guard: Arc<Guard>,
    lookup: Arc<dyn Lookup>,
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl Outbound {
    /// A client that reaches public addresses and, of the private ones, those in `allow`.
    pub fn new(allow: Vec<IpNet>) -> Result<Outbound, OutboundError> {
        Self::with_lookup(allow, Arc::new(SystemLookup))
    }

    /// [`Outbound::new`] that trusts these certificates (PEM) and no others.
    pub fn with_roots(allow: Vec<IpNet>, pem: &[u8]) -> Result<Outbound, OutboundError> {
        let roots = reqwest::Certificate::from_pem_bundle(pem).map_err(OutboundError::Client)?;
        Self::build(allow, Arc::new(SystemLookup), Some(roots))
    }

    /// [`Outbound::new`] with another resolver.
    pub fn with_lookup(allow: Vec<IpNet>, lookup: Arc<dyn Lookup>) -> Result<Outbound, OutboundError> {
        Self::build(allow, lookup, None)
    }

    fn build(
        allow: Vec<IpNet>,
        lookup: Arc<dyn Lookup>,
        roots: Option<Vec<reqwest::Certificate>>,
    ) -> Result<Outbound, OutboundError> {
        let guard = Arc::new(Guard::new(allow));
        let builder = || {
            reqwest::Client::builder()
                .dns_resolver(Arc::new(Checked { guard: Arc::clone(&guard), lookup: Arc::clone(&lookup) }))
                // A proxy from the environment would connect for us, to addresses nobody checked.
                .no_proxy()
                // A redirect would carry the request, with its credentials, where its author did not send it.
                .redirect(redirect::Policy::none())
                .referer(false)
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_idle_timeout(Duration::from_secs(30))
                .user_agent(concat!("windlass/", env!("CARGO_PKG_VERSION")))
        };
        if let Some(roots) = roots {
            let client = builder().tls_certs_only(roots).build().map_err(OutboundError::Client)?;
            return Ok(Outbound { client, guard, lookup });
        }
        let client = match builder().build() {
            Ok(c) => c,
            Err(error) => {
                tracing::warn!(%error, "no CA certificates found, so https targets will fail; install ca-certificates");
                builder().tls_certs_only([]).build().map_err(OutboundError::Client)?
            }
        };
        Ok(Outbound { client, guard, lookup })
    }

    /// Checks what can be checked without a connection: form, scheme, and literal addresses. For use when an address is
    /// saved, so that its author hears of it at once.
    pub fn check_url(&self, url: &str) -> Result<Url, OutboundError> {
        let bad = |reason: &str| OutboundError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let parsed = Url::parse(url).map_err(|e| bad(&e.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(bad("only http and https are allowed"));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(OutboundError::Url {
                url: parsed.host_str().unwrap_or_default().to_owned(),
                reason: "credentials do not belong in an address; send them as a header".to_owned(),
            });
        }
        let host = parsed.host_str().ok_or_else(|| bad("it has no host"))?;
        if parsed.port_or_known_default() == Some(0) {
            return Err(bad("port 0 is no port"));
        }
        // The parser has already turned octal, hex, short and full-width forms of an address into the address.
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            self.guard.check(host, ip)?;
        } else {
            address::check_name(host)?;
        }
        Ok(parsed)
    }

    /// Checked addresses of `host`, for protocols other than HTTP (mail). Connect to these, not to the name.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, OutboundError> {
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            self.guard.check(host, ip)?;
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        address::check_name(host)?;
        let wait = tokio::time::timeout(CONNECT_TIMEOUT, Checked::addresses(&self.guard, self.lookup.as_ref(), host));
        let mut all = wait
            .await
            .map_err(|_| OutboundError::Timeout { host: host.to_owned(), seconds: CONNECT_TIMEOUT.as_secs_f64() })??;
        all.iter_mut().for_each(|a| a.set_port(port));
        Ok(all)
    }

    /// Sends and hands the body of a 2xx answer to `on_chunk` piece by piece, without keeping it. Returns status and bytes
    /// read; more than `max` bytes are an error.
    pub async fn stream(
        &self,
        request: Request,
        max: u64,
        mut on_chunk: impl FnMut(&[u8]),
    ) -> Result<(u16, u64), OutboundError> {
        let url = self.check_url(&request.url)?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let timeout = request.timeout;
        let call = self.client.request(request.method, url).headers(request.headers).body(request.body).send();
        let exchange = async {
            let response = call.await.map_err(|e| classify(e, &host, timeout))?;
            let status = response.status();
            let mut bytes = 0;
            if status.is_success() {
                let mut chunks = response.bytes_stream();
                while let Some(chunk) = chunks.next().await {
                    let chunk = chunk.map_err(|e| classify(e, &host, timeout))?;
                    bytes += chunk.len() as u64;
                    if bytes > max {
                        return Err(OutboundError::TooLarge { host: host.clone(), max });
                    }
                    on_chunk(&chunk);
                }
            }
            Ok((status.as_u16(), bytes))
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .map_err(|_| OutboundError::Timeout { host: host.clone(), seconds: timeout.as_secs_f64() })?
    }

    /// Sends. Any status is a response; redirects are not followed.
    pub async fn send(&self, request: Request) -> Result<Response, OutboundError> {
        let url = self.check_url(&request.url)?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let (timeout, max) = (request.timeout, request.max_response);
        let call = self.client.request(request.method, url).headers(request.headers).body(request.body).send();
        let exchange = async {
            let response = call.await.map_err(|e| classify(e, &host, timeout))?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let mut body = vec![];
            let mut truncated = false;
            let mut chunks = response.bytes_stream();
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|e| classify(e, &host, timeout))?;
                let room = max - body.len();
                body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                if chunk.len() > room {
                    truncated = true;
                    break;
                }
            }
            Ok(Response { status, headers, body, truncated })
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .map_err(|_| OutboundError::Timeout { host: host.clone(), seconds: timeout.as_secs_f64() })?
    }
}

/// Our own refusals travel through the client's error as its cause; take them out again.
fn classify(error: reqwest::Error, host: &str, timeout: Duration) -> OutboundError {
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(c) = cause {
        if let Some(own) = c.downcast_ref::<OutboundError>() {
            match own {
                OutboundError::Refused(r) => return OutboundError::Refused(r.clone()),
                OutboundError::Resolve { host, source } => {
                    return OutboundError::Resolve { host: host.clone(), source: source.kind().into() };
                }
                _ => break,
            }
        }
        cause = c.source();
    }
    let host = host.to_owned();
    // The address may hold a secret (chat hooks do), so it must not reach a log.
    let source = error.without_url();
    if source.is_connect() {
        OutboundError::Connect { host, source }
    } else if source.is_timeout() {
        OutboundError::Timeout { host, seconds: timeout.as_secs_f64() }
    } else {
        OutboundError::Exchange { host, source }
    }
}

#[cfg(test)]
mod tests;
