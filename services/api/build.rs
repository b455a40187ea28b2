//! Makes sure that there is a console to embed: a page that says so where it was not built.

use std::{fs, path::Path};

const PAGE: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Windlass</title></head>\n\
<body><h1>Windlass</h1><p>The API runs; this build has no web console. Build it with <code>npm ci &amp;&amp; npm run build</code> \
in <code>services/console</code>, then build again. Everything it does, <code>windlass --help</code> does too.</p></body></html>\n";

fn main() {
    let dist = Path::new("../console/dist");
    println!("cargo:rerun-if-changed={}", dist.display());
    println!("cargo:rerun-if-changed=build.rs");
    let index = dist.join("index.html");
    if !index.exists() {
        let made = fs::create_dir_all(dist).and_then(|()| fs::write(&index, PAGE));
        if let Err(e) = made {
            println!("cargo:warning=cannot make {}: {e}", index.display());
        }
    }
}
