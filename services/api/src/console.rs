//! The web console, built into the binary.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, StatusCode, header},
};
use rust_embed::RustEmbed;

use crate::problem::Problem;

#[derive(RustEmbed)]
#[folder = "../console/dist/"]
struct Files;

/// Nothing but our own files: no inline script, no other site, no frame around it.
pub(crate) const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
                              connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the console, the console's page for its own addresses, or not found.
pub(crate) async fn serve(req: HttpRequest) -> HttpResponse {
    let path = req.path().trim_start_matches('/');
    let ours = ["api/", "hooks/"].iter().any(|p| path.starts_with(p));
    if ours || !matches!(*req.method(), Method::GET | Method::HEAD) {
        return Problem::not_found().response();
    }
    match file(path) {
        Some(r) => r,
        // Addresses inside the console have no dot; a missing file must not look like a page.
        None if !path.contains('.') => file("index.html").unwrap_or_else(|| Problem::not_found().response()),
        None => Problem::not_found().response(),
    }
}

fn file(path: &str) -> Option<HttpResponse> {
    let path = if path.is_empty() { "index.html" } else { path };
    let f = Files::get(path)?;
    let kind = match path.rsplit_once('.').map(|(_, e)| e) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("json" | "map") => "application/json",
        Some("woff2") => "font/woff2",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    };
    // Built files carry a hash in their name; the page does not.
    let cache = if path.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-store" };
    Some(
        HttpResponse::build(StatusCode::OK)
            .content_type(kind)
            .insert_header((header::CACHE_CONTROL, cache))
            .body(f.data.into_owned()),
    )
}
