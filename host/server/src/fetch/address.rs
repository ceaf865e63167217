//! Which addresses may be connected to: those of the public internet, and those of networks that the operator lists.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether this address may be connected to.
pub(super) fn may_reach(address: IpAddr, listed: &[IpNet]) -> bool {
    let address = plain(address);
    let is_public = match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    };
    is_public || listed.iter().any(|network| network.contains(&address))
}

/// An IPv4 address that is written as one of IPv6 is what it leads to.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    match v6.segments() {
        // ::ffff:a.b.c.d, and the prefix of NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => address,
    }
}

/// All but the special-purpose blocks (RFC 6890), multicast, and the one public address that serves metadata.
fn is_public_v4(address: Ipv4Addr) -> bool {
    !matches!(
        address.octets(),
        [0 | 10 | 127, ..]
            | [100, 64..=127, ..]
            | [169, 254, ..]
            | [172, 16..=31, ..]
            | [192, 0, 0 | 2, _]
            | [192, 88, 99, _]
            | [192, 168, ..]
            | [198, 18 | 19, ..]
            | [198, 51, 100, _]
            | [203, 0, 113, _]
            // Azure's.
            | [168, 63, 129, 16]
            | [224..=255, ..]
    )
}

/// Global unicast alone, without what is a protocol's, a document's, or a tunnel to an IPv4 address.
fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
        [first, ..] => (0x2000..=0x3fff).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reachable(address: &str, listed: &[&str]) -> bool {
        let listed: Vec<IpNet> = listed.iter().map(|network| network.parse().unwrap()).collect();
        may_reach(address.parse().unwrap(), &listed)
    }

    #[test]
    fn the_public_internet_may_be_reached() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "172.32.0.1",
            "192.0.1.1",
            "100.128.0.1",
            "2606:4700::1111",
            "2a00::1",
            "64:ff9b::808:808",
        ] {
            assert!(reachable(address, &[]), "{address}");
        }
    }

    #[test]
    fn nothing_else_may() {
        for address in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.5",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "4000::1",
        ] {
            assert!(!reachable(address, &[]), "{address}");
        }
    }

    #[test]
    fn a_listed_network_may_be_reached_and_no_wider_one() {
        assert!(reachable("10.1.2.3", &["192.168.0.0/16", "10.1.2.0/24"]));
        assert!(reachable("::ffff:10.1.2.3", &["10.1.2.0/24"]));
        assert!(reachable("fd00::5", &["fd00::/64"]));
        assert!(!reachable("10.1.3.3", &["10.1.2.0/24"]));
        assert!(!reachable("127.0.0.2", &["127.0.0.1/32"]));
        assert!(!reachable("::1", &["127.0.0.0/8"]));
    }
}
