//! The page at `/` and the document's at `/docs`: a few files in the binary, which load nothing from elsewhere.

use crate::call::Call;
use actix_web::HttpResponse;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use backplane::Result;

/// Everything comes from this server, and nothing is written into the markup.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

fn file(media: &'static str, content: &'static str) -> Result<HttpResponse> {
    Ok(HttpResponse::Ok()
        .content_type(media)
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(content))
}

pub(crate) async fn index(_call: Call) -> Result<HttpResponse> {
    file("text/html; charset=utf-8", include_str!("index.html"))
}

pub(crate) async fn css(_call: Call) -> Result<HttpResponse> {
    file("text/css; charset=utf-8", include_str!("page.css"))
}

pub(crate) async fn js(_call: Call) -> Result<HttpResponse> {
    file("text/javascript; charset=utf-8", include_str!("page.js"))
}

pub(crate) async fn docs(_call: Call) -> Result<HttpResponse> {
    file("text/html; charset=utf-8", include_str!("docs.html"))
}

pub(crate) async fn docs_js(_call: Call) -> Result<HttpResponse> {
    file("text/javascript; charset=utf-8", include_str!("docs.js"))
}

pub(crate) async fn icon(_call: Call) -> Result<HttpResponse> {
    file("image/svg+xml", include_str!("icon.svg"))
}

#[cfg(test)]
mod tests {
    /// The policy refuses what is written into the markup, and a page that works offline names no other place.
    #[test]
    fn nothing_is_inline_and_nothing_is_elsewhere() {
        for page in [include_str!("index.html"), include_str!("docs.html")] {
            assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains(" onclick="));
            assert!(!page.contains("<script>") && !page.contains("http:") && !page.contains("https:"));
        }
        for file in [include_str!("page.css"), include_str!("page.js"), include_str!("docs.js")] {
            assert!(!file.contains("https:") && !file.contains("@import") && !file.contains("innerHTML"));
        }
    }
}
