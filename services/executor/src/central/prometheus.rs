//! `prometheus.query`: an instant query against Prometheus' HTTP API (`/api/v1/query`).

use super::{Done, chain, failed, failed_as, http, number, text};
use crate::shared::Shared;
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio::time::Instant;
use windlass_bus::wake::Backoff;
use windlass_domain::work::FailureClass;
use windlass_runtime::outbound::Request;

const MAX_BODY: usize = 256 * 1024;
/// Of the series that came back, so many are kept.
const KEPT_SERIES: usize = 100;

#[derive(Debug, Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "snake_case")]
enum Data {
    Vector(Vec<Series>),
    Scalar(Sample),
    /// A range of samples, or a text: nothing one number can be read from.
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct Series {
    #[serde(default)]
    metric: Map<String, Value>,
    value: Sample,
}

/// Time and value; the value is a text, so that it can be `NaN`.
#[derive(Debug, Deserialize)]
struct Sample(#[allow(dead_code)] f64, String);

impl Sample {
    /// `None` for what is no number in JSON.
    fn number(&self) -> Option<f64> {
        self.1.parse::<f64>().ok().filter(|n| n.is_finite())
    }
}

/// Asks until Prometheus answers or `within_s` is over.
pub(super) async fn run(shared: &Shared, with: &Map<String, Value>, timeout: Duration) -> Done {
    let within = number(with, "within_s").map_or(timeout, Duration::from_secs).min(timeout);
    let deadline = Instant::now() + within;
    let mut pause = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let done = once(shared, with, left.min(http::MAX_TRY)).await;
        let pause = pause.next();
        // Only what did not come to an answer is asked again.
        if done.class != Some(FailureClass::Timeout) || Instant::now() + pause >= deadline {
            return done;
        }
        tokio::time::sleep(pause).await;
    }
}

/// One question. Output: `value` (a number, null unless there is exactly one sample) and `series`.
pub(crate) async fn once(shared: &Shared, with: &Map<String, Value>, timeout: Duration) -> Done {
    let refused = |reason: String| failed_as(FailureClass::Refused, reason);
    let (Some(url), Some(query)) = (text(with, "url"), text(with, "query")) else {
        return refused("`url` or `query` is missing".into());
    };
    let Some(url) = address(url, query) else {
        return refused(format!("`{url}` is not the address of a Prometheus, such as http://prometheus:9090"));
    };
    let headers = match http::headers(with) {
        Ok(h) => h,
        Err(reason) => return refused(reason),
    };
    let request = Request { headers, timeout, max_response: MAX_BODY, ..Request::new(Method::GET, url) };
    match shared.outbound.send(request).await {
        Ok(r) if r.truncated => failed(format!("Prometheus sent more than {MAX_BODY} bytes: ask for less")),
        Ok(r) => read(r.status, &r.body),
        Err(error) if error.retryable() => failed_as(FailureClass::Timeout, chain(&error)),
        Err(error) => refused(chain(&error)),
    }
}

fn address(base: &str, query: &str) -> Option<String> {
    let mut url = Url::parse(base).ok()?;
    url.path_segments_mut().ok()?.pop_if_empty().extend(["api", "v1", "query"]);
    url.query_pairs_mut().append_pair("query", query);
    Some(url.into())
}

fn read(status: u16, body: &[u8]) -> Done {
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
        return failed(format!("it answered {status}, and not as Prometheus does: check `url`"));
    };
    let data = match answer.data {
        Some(data) if answer.status == "success" => data,
        _ => {
            let why = answer.error.unwrap_or_else(|| "no reason given".into());
            return failed(format!("Prometheus refused the query ({status}): {why}"));
        }
    };
    let samples: Vec<(Map<String, Value>, Option<f64>)> = match data {
        Data::Vector(v) => v.into_iter().map(|s| (s.metric, s.value.number())).collect(),
        Data::Scalar(s) => vec![(Map::new(), s.number())],
        Data::Other => return failed("the query gives neither a number nor one value a series: ask an instant query"),
    };
    let value = match samples.as_slice() {
        [(_, one)] => *one,
        _ => None,
    };
    let series: Vec<Value> =
        samples.iter().take(KEPT_SERIES).map(|(labels, value)| json!({ "labels": labels, "value": value })).collect();
    Done { output: json!({ "value": value, "series": series }), ..Done::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_have_a_path() {
        let of = |base| address(base, "up == 1 & x").expect("an address");
        assert_eq!(of("http://p:9090"), "http://p:9090/api/v1/query?query=up+%3D%3D+1+%26+x");
        assert_eq!(of("http://p:9090/prom/"), "http://p:9090/prom/api/v1/query?query=up+%3D%3D+1+%26+x");
        assert!(address("mailto:a@b", "up").is_none());
    }

    #[test]
    fn one_sample_is_a_value_and_none_or_many_are_null() {
        let answer = |kind: &str, result: Value| {
            let body = json!({ "status": "success", "data": { "resultType": kind, "result": result } });
            read(200, body.to_string().as_bytes())
        };
        assert_eq!(answer("scalar", json!([1.5, "3"])).output["value"], 3.0);
        let one = answer("vector", json!([{ "metric": { "job": "web" }, "value": [1, "0.25"] }]));
        assert_eq!(one.output, json!({ "value": 0.25, "series": [{ "labels": { "job": "web" }, "value": 0.25 }] }));
        assert!(answer("vector", json!([])).output["value"].is_null());
        let two = json!([{ "metric": {}, "value": [1, "1"] }, { "metric": {}, "value": [1, "2"] }]);
        assert_eq!(answer("vector", two).output["series"].as_array().map(Vec::len), Some(2));
        assert!(answer("scalar", json!([1, "NaN"])).output["value"].is_null());
        assert!(answer("matrix", json!([])).failed.is_some());
    }

    #[test]
    fn what_is_no_answer_of_prometheus_is_told() {
        let refused = read(400, br#"{"status":"error","errorType":"bad_data","error":"parse error"}"#);
        assert!(refused.failed.is_some_and(|r| r.contains("parse error")));
        assert!(read(200, b"<html>").failed.is_some_and(|r| r.contains("check `url`")));
    }
}
