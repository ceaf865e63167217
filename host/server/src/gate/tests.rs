use crate::caller::Scope;
use crate::route::{Route, get};
use crate::{Server, gate};
use actix_web::HttpResponse;
use backplane::config::LoadOptions;
use backplane::{Config, Error, Host, Result};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

fn routes() -> Vec<Route> {
    async fn panics() -> Result<HttpResponse> {
        panic!("a secret of /home/somebody");
    }
    async fn panics_later() -> Result<HttpResponse> {
        actix_web::rt::task::yield_now().await;
        Err(Error::internal(format!("{}", [0_u8; 0][std::hint::black_box(1)])))
    }
    vec![
        get("/panics", Scope::Open, |_| panics()),
        get("/v2/panics", Scope::Open, |_| panics_later()),
        get("/panics/at-once", Scope::Open, |call| {
            assert!(call.id.is_empty(), "not even a future");
            panics()
        }),
        get("/works", Scope::Open, |_| async { Ok(HttpResponse::Ok().body("it works")) }),
    ]
}

/// Asks on one connection.
fn ask(stream: &mut TcpStream, path: &str) -> (String, Value) {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nx-request-id: my-own-id\r\n\r\n").unwrap();
    let mut read = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let size = stream.read(&mut piece).unwrap();
        assert_ne!(size, 0, "closed after {}", String::from_utf8_lossy(&read));
        read.extend(&piece[..size]);
        let text = String::from_utf8_lossy(&read);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && (body == "it works" || body.ends_with('}'))
        {
            return (head.to_owned(), serde_json::from_str(body).unwrap_or_default());
        }
    }
}

#[actix_web::test]
async fn a_panic_in_a_handler_is_500_and_the_server_goes_on() {
    let state = tempfile::tempdir().unwrap();
    let overrides = [("server.address", "127.0.0.1:0"), ("server.workers", "1"), ("auth.enabled", "false")];
    let overrides = overrides.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
    let config = Config::load(LoadOptions { overrides, ..LoadOptions::default() }).unwrap();
    let settings = config.server.clone();
    let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
    let server = Server::start_as(host.clone(), settings, |listener, shared, config| {
        gate::serve(listener, shared, config, routes)
    })
    .unwrap();
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for path in ["/panics", "/panics/at-once", "/panics"] {
        let (head, body) = ask(&mut stream, path);
        assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
        assert!(head.contains("x-request-id: my-own-id"), "{head}");
        assert_eq!(
            (&body["error"]["type"], &body["error"]["code"]),
            (&"server_error".into(), &"panic".into())
        );
        assert!(!body.to_string().contains("secret"), "{body}");
        // The same connection, and the same thread.
        assert!(ask(&mut stream, "/works").0.starts_with("HTTP/1.1 200 "));
    }
    let (head, body) = ask(&mut stream, "/v2/panics");
    assert!(head.starts_with("HTTP/1.1 500 ") && body["error"].is_string(), "{head} {body}");
    server.stop(Duration::ZERO).await;
    host.shutdown(Duration::ZERO).await;
}
