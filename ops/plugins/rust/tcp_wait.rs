//! Waits until something listens on a TCP port. One file, the standard library only: `rustc -O --edition 2024 tcp_wait.rs`.
//!
//! inputs:  address (`host:port`)
//! outputs: address, attempts
//!
//! It shows `running` and `poll`: each call looks once and says when to ask again, so nothing is lost when the executor is
//! replaced in between. How often it looked is kept in `state`, which comes back with the next request.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

fn main() {
    let mut request = String::new();
    if std::io::stdin().read_to_string(&mut request).is_err() {
        std::process::exit(2);
    }
    let answer = match text(&request, "verb").as_deref() {
        Some("execute" | "poll") => look(&request),
        Some(verb) => failed(&format!("this plugin does not know the verb {verb}")),
        None => failed("the request names no verb"),
    };
    let _ = std::io::stdout().write_all(answer.as_bytes());
}

fn look(request: &str) -> String {
    let Some(address) = text(request, "address") else { return failed("the address is missing") };
    let attempts = number(request, "attempts").unwrap_or(0) + 1;
    let found = match address.to_socket_addrs() {
        Ok(mut all) => all.any(|a| TcpStream::connect_timeout(&a, Duration::from_secs(2)).is_ok()),
        Err(error) => {
            eprintln!("{address}: {error}");
            false
        }
    };
    eprintln!("look {attempts}: {address} {}", if found { "answers" } else { "does not answer" });
    if found {
        format!(r#"{{"status":"succeeded","outputs":{{"address":"{address}","attempts":{attempts}}}}}"#)
    } else {
        format!(r#"{{"status":"running","state":{{"attempts":{attempts}}},"poll_after_s":0.5}}"#)
    }
}

fn failed(message: &str) -> String {
    format!(r#"{{"status":"failed","message":"{message}"}}"#)
}

/// The text under a key. The schema lets no quotes and backslashes into the address, so this small reader does; a plugin with
/// more to read takes a JSON library.
fn text(json: &str, key: &str) -> Option<String> {
    let rest = &json[json.find(&format!("\"{key}\":\""))? + key.len() + 4..];
    Some(rest[..rest.find('"')?].to_owned())
}

fn number(json: &str, key: &str) -> Option<u64> {
    let rest = &json[json.find(&format!("\"{key}\":"))? + key.len() + 3..];
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}
