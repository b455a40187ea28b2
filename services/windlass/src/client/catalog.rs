//! The catalog and the artifacts: `apply`, `get`, `release`.

use super::{
    error::Error,
    http::{Api, encode, query},
    out::{Out, short_digest},
    view,
};
use crate::cli::{ApplyArgs, GetArgs, ReleaseArgs};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{io::Read, path::Path};
use windlass_contracts::http::ArtifactNew;

pub(crate) async fn apply(args: &ApplyArgs, api: &Api, out: Out) -> Result<(), Error> {
    let mut answers = vec![];
    for path in &args.files {
        let text = read(path)?;
        let dry = args.dry_run.then_some("true");
        let answer: Value = api.post_text(&query("/apply", &[("dry_run", dry)]), "application/yaml", text).await?;
        answers.push(answer);
    }
    if out.json {
        return out.json(&if answers.len() == 1 { answers.remove(0) } else { Value::Array(answers) });
    }
    let items: Vec<&Value> = answers.iter().flat_map(view::items).collect();
    let rows = items.iter().map(|c| ["change", "kind", "key", "revision"].map(|k| view::text(c, k)).to_vec());
    out.table(&["CHANGE", "KIND", "KEY", "REVISION"], rows.collect(), "nothing to apply")?;
    for item in &items {
        for d in view::list(item, "diff").iter().filter(|_| view::text(item, "change") == "changed") {
            let shown = |k: &str| view::at(d, k).map(ToString::to_string).unwrap_or_default();
            let line = format!(
                "  {} {}: {} -> {}",
                view::text(item, "key"),
                view::text(d, "path"),
                shown("from"),
                shown("to")
            );
            out.line(super::text::clean(&line, false))?;
        }
    }
    if args.dry_run { out.line("nothing was saved (--dry-run)") } else { Ok(()) }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    if path == Path::new("-") {
        let mut text = vec![];
        let got = std::io::stdin().lock().read_to_end(&mut text);
        got.map_err(|source| Error::File { path: path.into(), what: "standard input cannot be read", source })?;
        return Ok(text);
    }
    std::fs::read(path).map_err(|source| Error::File { path: path.into(), what: "the file cannot be read", source })
}

pub(crate) async fn get(args: &GetArgs, api: &Api, out: Out) -> Result<(), Error> {
    let Some(key) = &args.key else {
        let page: Value = api.get(&format!("/catalog/{}", args.kind)).await?;
        if out.json {
            return out.json(&page);
        }
        let rows = view::items(&page).iter().map(|i| {
            vec![
                view::text(i, "key"),
                view::text(i, "revision"),
                view::time(i, "updated_at"),
                view::text(i, "updated_by"),
            ]
        });
        return out.table(&["KEY", "REVISION", "SAVED", "BY"], rows.collect(), "none");
    };
    // `project/name` is written with a dot where it has to be one path segment.
    let item: Value = api.get(&format!("/catalog/{}/{}", args.kind, encode(&key.replace('/', ".")))).await?;
    out.json(&item)
}

pub(crate) async fn release(args: &ReleaseArgs, api: &Api, out: Out) -> Result<(), Error> {
    let (digest, size) = match &args.file {
        Some(path) => {
            let (digest, size) = digest_of(path)?;
            if args.digest.as_ref().is_some_and(|d| *d != digest) {
                return Err(Error::Usage(format!("{} has the digest {digest}, not the one given", path.display())));
            }
            (digest, Some(size))
        }
        None => (args.digest.clone().unwrap_or_default(), None),
    };
    let url = match (&args.url, &args.file) {
        (Some(url), _) => url.clone(),
        (None, Some(path)) => {
            let path = std::path::absolute(path).map_err(|source| Error::File {
                path: path.clone(),
                what: "not a path",
                source,
            })?;
            format!("file://{}", path.display())
        }
        (None, None) => return Err(Error::Usage("give --file or --url".into())),
    };
    let body = ArtifactNew {
        version: args.version.clone(),
        digest: digest.clone(),
        url: url.clone(),
        size,
        git_ref: args.git_ref.clone(),
        commit: args.commit.clone(),
        committer: args.committer.clone(),
        build_url: args.build_url.clone(),
        built_at: None,
    };
    let path = format!("/projects/{}/artifacts", encode(&args.project));
    let answer: Value = api.post(&path, &body).await?;
    if out.json {
        return out.json(&answer);
    }
    out.line(format!("{} {} is registered: {} at {url}", args.project, args.version, short_digest(&digest)))?;
    if url.starts_with("file://") && args.url.is_none() {
        out.line("its hosts must see the file under this path; use --url for hosts elsewhere")?;
    }
    Ok(())
}

fn digest_of(path: &Path) -> Result<(String, u64), Error> {
    let error = |source| Error::File { path: path.to_owned(), what: "the package cannot be read", source };
    let mut file = std::fs::File::open(path).map_err(error)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        match file.read(&mut buffer).map_err(error)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok((format!("sha256:{hex}"), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demos_catalog_reads() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ops/demo.d/catalog.yaml");
        let text = std::fs::read_to_string(path).expect("the file is in the checkout");
        let documents = windlass_domain::catalog::read(&text).expect("no errors");
        assert_eq!(documents.len(), 5);
    }

    #[test]
    fn a_file_has_the_digest_that_sha256sum_prints() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("x");
        std::fs::write(&path, "abc").expect("write");
        let (digest, size) = digest_of(&path).expect("digest");
        assert_eq!(digest, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(size, 3);
    }
}
