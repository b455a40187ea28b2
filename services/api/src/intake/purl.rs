//! Package URLs, as far as build events need them: version, `download_url`, `checksum`.

/// The parts of `pkg:type/name@version?qualifiers`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Purl {
    pub(crate) version: Option<String>,
    pub(crate) download_url: Option<String>,
    /// `sha256:<hex>`
    pub(crate) sha256: Option<String>,
}

/// `None`: not a package URL.
pub(crate) fn parse(text: &str) -> Option<Purl> {
    let rest = text.strip_prefix("pkg:")?;
    let rest = rest.split('#').next()?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut out = Purl { version: path.rsplit_once('@').and_then(|(_, v)| decode(v)), ..Purl::default() };
    for pair in query.split('&') {
        let Some((key, value)) = pair.split_once('=') else { continue };
        let value = decode(value);
        match key {
            "download_url" => out.download_url = value,
            "checksum" => {
                out.sha256 = value.and_then(|v| v.split(',').find(|c| c.starts_with("sha256:")).map(str::to_lowercase))
            }
            _ => {}
        }
    }
    Some(out)
}

fn decode(s: &str) -> Option<String> {
    let mut out = Vec::with_capacity(s.len());
    let mut bytes = s.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16)).and_then(|d| u8::try_from(d).ok());
            out.push(digit()? * 16 + digit()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok().filter(|s| !s.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_found() {
        let p = parse(
            "pkg:generic/acme/shop@1.2.3%2Bb1?checksum=sha1:aa,sha256:BB&download_url=https%3A%2F%2Fci%2Fx.tar.gz#sub",
        )
        .expect("purl");
        assert_eq!(p.version.as_deref(), Some("1.2.3+b1"));
        assert_eq!(p.download_url.as_deref(), Some("https://ci/x.tar.gz"));
        assert_eq!(p.sha256.as_deref(), Some("sha256:bb"));
        assert_eq!(parse("https://x"), None);
        assert_eq!(parse("pkg:generic/x"), Some(Purl::default()));
        assert_eq!(parse("pkg:generic/x@%zz"), Some(Purl::default()));
    }
}
