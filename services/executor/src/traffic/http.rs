//! Load balancers with an HTTP API, spoken to through the guarded client. `{member}` in an address, a header or a body is
//! the member's name, and `${{ secrets.name }}` a secret of the environment, filled in here and shown nowhere.

use super::{Fault, Says, least, turns::Minimum};
use crate::{central::chain, secrets, shared::Shared};
use reqwest::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::Value;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, sleep};
use windlass_domain::{
    expression::{Context, Expression},
    secret::Secrets,
    traffic::{HttpCall, OnDrainTimeout},
    work::Work,
};
use windlass_runtime::outbound::Request;

const CALL: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 1 << 20;
/// Between two looks, and two tries.
const LOOK: Duration = Duration::from_millis(250);
const AGAIN: Duration = Duration::from_secs(1);

/// One load balancer and the member it is about.
pub(super) struct Http<'a> {
    pub(super) shared: &'a Shared,
    pub(super) work: &'a Work,
    pub(super) member: &'a str,
    /// Members of the rollout, of which `min_healthy` may be a part.
    pub(super) members: u32,
    pub(super) drain: &'a HttpCall,
    pub(super) attach: &'a HttpCall,
    pub(super) state: Option<&'a HttpCall>,
    pub(super) drained: Option<&'a str>,
    pub(super) up: Option<&'a str>,
    pub(super) healthy: Option<&'a str>,
}

/// Names between `${{ secrets.` and `}}`.
fn secret_names(text: &str) -> impl Iterator<Item = &str> {
    text.split("${{").skip(1).filter_map(|rest| rest.split_once("}}")?.0.trim().strip_prefix("secrets."))
}

/// The text with secrets and member filled in; the member goes in last, so that no value is read for it.
fn filled(text: &str, member: &str, secrets: &Secrets) -> Result<String, Fault> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${{") {
        out += &before.replace("{member}", member);
        let Some((inside, after)) = after.split_once("}}") else {
            return Err(Fault::Refused("a `${{` in its HTTP calls has no end".into()));
        };
        let name = inside.trim().strip_prefix("secrets.").unwrap_or_default();
        let Some(value) = secrets.get(name) else {
            return Err(Fault::Refused(format!("`{}` is no secret: its HTTP calls read secrets alone", inside.trim())));
        };
        out += value.expose();
        rest = after;
    }
    Ok(out + &rest.replace("{member}", member))
}

impl Http<'_> {
    pub(super) async fn drain(
        &self,
        min: Option<Minimum<'_>>,
        limit: Duration,
        late: OnDrainTimeout,
        says: &Says,
    ) -> Result<(), Fault> {
        let until = Instant::now() + limit;
        let secrets = self.secrets().await?;
        self.take_off(min, until, limit, &secrets, says).await?;
        let Some(drained) = self.drained else { return Ok(()) };
        loop {
            if self.is(drained, &secrets, until).await? {
                return Ok(());
            }
            let text = format!("`{drained}` is not true yet for {}", self.member);
            if Instant::now() >= until {
                return match late {
                    OnDrainTimeout::Fail => Err(Fault::Timeout(format!("{text} after {} s", limit.as_secs()))),
                    // What the far side does with the connections that are left is its own.
                    OnDrainTimeout::GoOn => Ok(()),
                };
            }
            says.waits(&text);
            sleep(LOOK).await;
        }
    }

    async fn take_off(
        &self,
        min: Option<Minimum<'_>>,
        until: Instant,
        limit: Duration,
        secrets: &Secrets,
        says: &Says,
    ) -> Result<(), Fault> {
        let (Some(min), Some(healthy)) = (min, self.healthy) else {
            return self.call(self.drain, secrets, until).await;
        };
        loop {
            let Some(text) = self.try_off(min, healthy, until, secrets, says).await? else { return Ok(()) };
            if Instant::now() >= until {
                return Err(Fault::Timeout(format!("{text}, for {} s", limit.as_secs())));
            }
            says.waits(&text);
            sleep(LOOK).await;
        }
    }

    /// What keeps the member on, or `None`: it was told to go.
    async fn try_off(
        &self,
        min: Minimum<'_>,
        healthy: &str,
        until: Instant,
        secrets: &Secrets,
        says: &Says,
    ) -> Result<Option<String>, Fault> {
        let need = least(min.share, self.members);
        let short = async |until: Instant| {
            let others = self.healthy_others(healthy, secrets, until).await?.filter(|n| *n < i64::from(need));
            let (n, all) = (others.unwrap_or_default().max(0), self.members);
            Ok(others.map(|_| format!("{n} of {all} members would be left up, min_healthy asks for {need}")))
        };
        let here = min.turns.here(self.state.map(|s| s.url.clone()), until).await?;
        if let Some(text) = short(until).await? {
            return Ok(Some(text));
        }
        let turn = here.everywhere(until, says).await?;
        let off = async {
            if let Some(text) = short(turn.ends).await? {
                return Ok(Some(text));
            }
            if turn.is_over() {
                return Ok(Some("the turn ended before the member was taken off".into()));
            }
            self.call(self.drain, secrets, turn.ends).await.map(|()| None)
        };
        match off.await {
            // It could have been the turn that was too short, not the time.
            Err(Fault::Broken(why)) if turn.is_over() => Ok(Some(why)),
            done => done,
        }
    }

    /// Healthy members without this one; `None` where this one is not among them, so that nothing is lost with it.
    async fn healthy_others(&self, healthy: &str, secrets: &Secrets, until: Instant) -> Result<Option<i64>, Fault> {
        let context = self.ask(secrets, until).await?;
        let off = |e: &str| Expression::compile(e).and_then(|e| e.eval_bool(&context));
        if let Some(drained) = self.drained
            && off(drained).map_err(wrong)?
        {
            return Ok(None);
        }
        if let Some(up) = self.up
            && !off(up).map_err(wrong)?
        {
            return Ok(None);
        }
        let value = Expression::compile(healthy).and_then(|e| e.eval(&context)).map_err(wrong)?;
        #[expect(clippy::cast_possible_truncation, reason = "a number of members")]
        let n = value.as_i64().or_else(|| value.as_f64().map(|n| n as i64));
        n.map(|n| Some(n - 1))
            .ok_or_else(|| Fault::Refused(format!("`{healthy}` gives {value}, not a number of members")))
    }

    pub(super) async fn attach(&self, limit: Duration, says: &Says) -> Result<(), Fault> {
        let until = Instant::now() + limit;
        let secrets = self.secrets().await?;
        self.call(self.attach, &secrets, until).await?;
        let Some(up) = self.up else { return Ok(()) };
        loop {
            if self.is(up, &secrets, until).await? {
                return Ok(());
            }
            let text = format!("`{up}` is not true yet for {}", self.member);
            if Instant::now() >= until {
                return Err(Fault::Timeout(format!("{text} after {} s", limit.as_secs())));
            }
            says.waits(&text);
            sleep(LOOK).await;
        }
    }

    async fn secrets(&self) -> Result<Secrets, Fault> {
        let calls = [Some(self.drain), Some(self.attach), self.state];
        let texts = calls
            .into_iter()
            .flatten()
            .flat_map(|c| [Some(&c.url), c.body.as_ref()].into_iter().flatten().chain(c.headers.values()));
        let names: BTreeSet<String> = texts.flat_map(|t| secret_names(t)).map(str::to_owned).collect();
        secrets::resolve(self.shared, self.work, None, &names).await.map_err(|e| match e.may_pass() {
            true => Fault::Broken(e.to_string()),
            false => Fault::Refused(e.to_string()),
        })
    }

    async fn is(&self, expression: &str, secrets: &Secrets, until: Instant) -> Result<bool, Fault> {
        let context = self.ask(secrets, until).await?;
        Expression::compile(expression).and_then(|e| e.eval_bool(&context)).map_err(wrong)
    }

    /// What expressions read.
    async fn ask(&self, secrets: &Secrets, until: Instant) -> Result<Context, Fault> {
        let Some(call) = self.state else {
            return Err(Fault::Refused("has no `state` to ask".into()));
        };
        let (status, body) = self.exchange(call, Method::GET, secrets, until).await?;
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Context::default().with("json", json).with("status", status.into()))
    }

    async fn call(&self, call: &HttpCall, secrets: &Secrets, until: Instant) -> Result<(), Fault> {
        loop {
            let (status, _) = self.exchange(call, Method::POST, secrets, until).await?;
            match status {
                200..300 => return Ok(()),
                // It may be otherwise soon; both calls can be made again.
                408 | 425 | 429 | 500.. if Instant::now() + AGAIN < until => sleep(AGAIN).await,
                408 | 425 | 429 | 500.. => {
                    return Err(Fault::Broken(format!("its API answered {status} for {}", self.member)));
                }
                _ => return Err(Fault::Refused(format!("its API answered {status} for {}", self.member))),
            }
        }
    }

    /// One exchange; one that breaks off is tried again until `until`.
    async fn exchange(
        &self,
        call: &HttpCall,
        default: Method,
        secrets: &Secrets,
        until: Instant,
    ) -> Result<(u16, Vec<u8>), Fault> {
        let request = self.request(call, default, secrets)?;
        loop {
            let left = until.saturating_duration_since(Instant::now()).clamp(Duration::from_secs(1), CALL);
            match self.shared.outbound.send(Request { timeout: left, ..request.clone() }).await {
                Ok(r) if r.truncated => {
                    return Err(Fault::Refused(format!("its API answered with more than {MAX_ANSWER} bytes")));
                }
                Ok(r) => return Ok((r.status, r.body)),
                Err(e) if e.retryable() && Instant::now() + AGAIN < until => sleep(AGAIN).await,
                Err(e) if e.retryable() => {
                    return Err(Fault::Broken(format!("its API cannot be asked: {}", chain(&e))));
                }
                // The client's words could show the address, and with it a secret.
                Err(_) => return Err(Fault::Refused("its API's address is not one that executors may call".into())),
            }
        }
    }

    fn request(&self, call: &HttpCall, default: Method, secrets: &Secrets) -> Result<Request, Fault> {
        let method = match &call.method {
            None => default,
            Some(m) => m.parse().map_err(|_| Fault::Refused(format!("`{m}` is no HTTP method")))?,
        };
        let mut headers = HeaderMap::new();
        for (name, value) in &call.headers {
            let value = filled(value, self.member, secrets)?;
            let pair = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(&value).ok());
            let Some((name, mut value)) = pair else {
                return Err(Fault::Refused(format!("its header `{name}` cannot be sent")));
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let url = filled(&call.url, self.member, secrets)?;
        let body = call.body.as_deref().map(|b| filled(b, self.member, secrets)).transpose()?.unwrap_or_default();
        Ok(Request { headers, body: body.into_bytes(), max_response: MAX_ANSWER, ..Request::new(method, url) })
    }
}

fn wrong(e: windlass_domain::expression::ExpressionError) -> Fault {
    Fault::Refused(e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_domain::secret::Secret;

    #[test]
    fn members_and_secrets_are_filled_in_once() {
        let secrets: Secrets = [("t".to_owned(), Secret::new("s3{member}".into()))].into_iter().collect();
        let of = |text: &str| filled(text, "web1:80", &secrets);
        assert_eq!(of("http://lb/{member}/x?m={member}").ok().as_deref(), Some("http://lb/web1:80/x?m=web1:80"));
        assert_eq!(of("Bearer ${{ secrets.t }}").ok().as_deref(), Some("Bearer s3{member}"), "no value is read again");
        assert!(matches!(of("${{ secrets.u }}"), Err(Fault::Refused(_))));
        assert!(matches!(of("${{ env.name }}"), Err(Fault::Refused(_))));
        assert!(matches!(of("${{ secrets.t"), Err(Fault::Refused(_))));
        assert_eq!(secret_names("a ${{secrets.a}} ${{ env.b }} ${{ secrets.c }}").collect::<Vec<_>>(), ["a", "c"]);
    }
}
