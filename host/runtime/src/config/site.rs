//! Whom the host may ask for something: a host, or all below a name, on a port.

use std::net::IpAddr;
use std::str::FromStr;

/// `images.example.com`; `*.example.com`, every name below it; `*`, any host; `10.1.2.3`; each with or without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    host: Hosts,
    /// None: the usual one of the address's scheme.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    Any,
    /// Every name that ends with this, which begins with a dot.
    Below(String),
    Name(String),
    Address(IpAddr),
}

impl Site {
    /// Whether a host, as a URL has it, on this port is one of them; `usual` is the port of the URL's scheme.
    pub fn covers(&self, host: &str, port: u16, usual: u16) -> bool {
        if port != self.port.unwrap_or(usual) {
            return false;
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        match &self.host {
            Hosts::Any => true,
            Hosts::Below(end) => host.len() > end.len() && host.ends_with(&**end),
            Hosts::Name(name) => host == name,
            Hosts::Address(address) => unbracketed(host).parse() == Ok(*address),
        }
    }
}

impl FromStr for Site {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a host; write `images.example.com`, `*.example.com`, `*` or `localhost:9000`, in the \
                 letters of DNS, without `https://` and without a path"
            )
        };
        let (host, port) = match text.rsplit_once(':') {
            // The colons of `::1` part no port off.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, Some(port.parse().map_err(|_| wrong())?))
            }
            _ => (text, None),
        };
        let host = match host {
            "*" => Hosts::Any,
            _ => match (unbracketed(host).parse(), host.strip_prefix('*')) {
                (Ok(address), _) => Hosts::Address(address),
                (_, Some(end)) if end.strip_prefix('.').is_some_and(is_name) => {
                    Hosts::Below(end.to_ascii_lowercase())
                }
                (_, None) if is_name(host) => Hosts::Name(host.to_ascii_lowercase()),
                _ => return Err(wrong()),
            },
        };
        Ok(Self { host, port })
    }
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_those_that_are_named_and_no_others() {
        let covers =
            |site: &str, host: &str, port: u16| site.parse::<Site>().unwrap().covers(host, port, 443);
        for (site, host, port) in [
            ("images.example.com", "images.example.com", 443),
            ("Images.Example.COM", "images.example.com.", 443),
            ("*.example.com", "a.b.example.com", 443),
            ("*", "anything.example", 443),
            ("localhost:9000", "localhost", 9000),
            ("10.1.2.3", "10.1.2.3", 443),
            ("::1", "[::1]", 443),
            ("[::1]:80", "[::1]", 80),
        ] {
            assert!(covers(site, host, port), "{site} {host} {port}");
        }
        for (site, host, port) in [
            ("images.example.com", "images.example.com", 8443),
            ("images.example.com", "images.example.com.evil.example", 443),
            ("*.example.com", "example.com", 443),
            ("*.example.com", "evilexample.com", 443),
            ("*", "anything.example", 22),
            ("localhost:9000", "localhost", 443),
            ("10.1.2.3", "10.1.2.30", 443),
        ] {
            assert!(!covers(site, host, port), "{site} {host} {port}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            "https://example.com",
            "example.com/",
            "a b",
            "*x.com",
            "a.*.com",
            "*.",
            "host:port",
            "münchen.de",
        ] {
            assert!(text.parse::<Site>().is_err(), "{text}");
        }
    }
}
