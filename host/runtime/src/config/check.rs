//! From what a file may say to what the host may trust. Every problem is found in one go.

use super::layers::{Layers, Source, join};
use super::raw::Raw;
use super::reference::{below, root, toml_value};
use super::units::MemoryBudget;
use super::*;
use serde_path_to_error::Segment;
use std::net::Ipv4Addr;

/// Reads the shape: keys that exist, values of the right type. What does not fit is reported and left at its default,
/// so that the rest can be checked too.
pub(super) fn shape(layers: &Layers) -> (Raw, Vec<Problem>) {
    let mut values = layers.merged.clone();
    let mut problems = Vec::new();
    let mut unknown = Vec::new();
    find_unknown(root(), &values, &mut Vec::new(), &mut unknown);
    for (path, message) in unknown {
        problems.push(problem(layers, &path, None, message));
        remove(&mut values, &path);
    }
    loop {
        match serde_path_to_error::deserialize(&values) {
            Ok(raw) => return (raw, problems),
            Err(error) => {
                let path = keys(error.path());
                let value = path.iter().try_fold(&values, |at, key| at.get(key)).map(toml_value);
                problems.push(problem(layers, &path, value, plain(&error.inner().to_string())));
                if path.is_empty() || !remove(&mut values, &path) {
                    return (Raw::default(), problems);
                }
            }
        }
    }
}

/// serde's words without the names of Rust's types.
fn plain(message: &str) -> String {
    let (Some(at), true) = (message.rfind("expected "), message.starts_with("invalid ")) else {
        return message.to_owned();
    };
    let (said, wanted) = message.split_at(at + "expected ".len());
    let wanted = match wanted {
        "u16" | "u32" | "u64" | "usize" => "a whole number from 0",
        "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        other => other,
    };
    format!("{said}{wanted}")
}

/// Keys that the schema does not have, each with the nearest that it has.
fn find_unknown(schema: &Value, value: &Value, path: &mut Vec<String>, out: &mut Vec<(Vec<String>, String)>) {
    let Value::Object(members) = value else { return };
    if !schema.is_object() || schema["type"] != "object" {
        return;
    }
    for (key, value) in members {
        path.push(key.clone());
        match below(schema, key) {
            Some(inner) => find_unknown(inner, value, path, out),
            None => {
                let known = schema["properties"].as_object().into_iter().flat_map(|known| known.keys());
                out.push((
                    path.clone(),
                    no_such_key(key, &path[..path.len() - 1], known.map(String::as_str)),
                ));
            }
        }
        path.pop();
    }
}

fn no_such_key<'a>(key: &str, parent: &[String], known: impl Iterator<Item = &'a str> + Clone) -> String {
    let full = |name: &str| {
        let mut path = parent.to_vec();
        path.push(name.to_owned());
        join(&path)
    };
    let near =
        known.clone().map(|name| (strsim::jaro_winkler(key, name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((likeness, name)) if likeness >= 0.75 => {
            format!("there is no such key; did you mean `{}`?", full(name))
        }
        _ => {
            let known: Vec<_> = known.map(|name| format!("`{name}`")).collect();
            format!("there is no such key; there are {}", known.join(", "))
        }
    }
}

/// The keys that lead to an error, up to the first list.
fn keys(path: &serde_path_to_error::Path) -> Vec<String> {
    path.iter()
        .map_while(|segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            Segment::Seq { .. } | Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

fn remove(values: &mut Value, path: &[String]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let parent = parents.iter().try_fold(values, |at, key| at.get_mut(key));
    parent.and_then(Value::as_object_mut).is_some_and(|members| members.shift_remove(last).is_some())
}

fn problem(layers: &Layers, path: &[String], value: Option<String>, message: String) -> Problem {
    Problem { key: join(path), value, origin: layers.origin(path), message }
}

/// Collects what is wrong with values that have the right type.
struct Checks<'a> {
    layers: &'a Layers,
    problems: &'a mut Vec<Problem>,
}

impl Checks<'_> {
    fn wrong(&mut self, path: &[&str], value: impl serde::Serialize, message: impl Into<String>) {
        let path: Vec<String> = path.iter().map(|key| (*key).to_owned()).collect();
        let value = serde_json::to_value(value).ok().map(|value| toml_value(&value));
        self.problems.push(problem(self.layers, &path, value, message.into()));
    }

    fn at_least_one(&mut self, path: &[&str], value: u64) {
        if value == 0 {
            self.wrong(path, value, "must be at least 1");
        }
    }

    fn some_time(&mut self, path: &[&str], span: units::Span) {
        if span.0.is_zero() {
            self.wrong(path, span, "must be longer than nothing");
        }
    }

    fn no_empty(&mut self, path: &[&str], list: &[String]) {
        if list.iter().any(String::is_empty) {
            self.wrong(path, list, "must not hold an empty entry");
        }
    }

    fn no_empty_path(&mut self, path: &[&str], list: &[PathBuf]) {
        if list.iter().any(|item| item.as_os_str().is_empty()) {
            self.wrong(path, list, "must not hold an empty entry");
        }
    }
}

/// Checks what the values mean, alone and together, and makes the checked type.
pub(super) fn meaning(
    raw: Raw,
    sources: BTreeMap<String, Source>,
    options: LoadOptions,
    layers: &Layers,
    problems: &mut Vec<Problem>,
) -> Option<Config> {
    let mut checks = Checks { layers, problems };
    let server = server(&raw, &mut checks);
    let fetch = fetch(&raw.fetch, &mut checks);
    plugins(&raw.plugins, &mut checks);
    models(&raw.models, &mut checks);
    cache(&raw.cache, &mut checks);
    if raw.compute.threads > 4096 {
        checks.wrong(
            &["compute", "threads"],
            raw.compute.threads,
            "must be at most 4096, or 0 for one per core",
        );
    }
    if !is_filter(&raw.log.level) {
        let help =
            "must be `error`, `warn`, `info`, `debug` or `trace`, or a list such as `info,backplane=debug`";
        checks.wrong(&["log", "level"], &raw.log.level, help);
    }
    for (id, worker) in &raw.plugins.workers {
        let threads = worker.threads.unwrap_or(1);
        checks.at_least_one(&["plugins", "workers", id.as_str(), "threads"], u64::from(threads));
        if let Some(progress) = worker.progress {
            checks.some_time(&["plugins", "workers", id.as_str(), "progress"], progress);
        }
        for port in &worker.ports {
            checks.at_least_one(&["plugins", "workers", id.as_str(), "ports"], u64::from(*port));
        }
    }
    Some(Config {
        server: server?,
        fetch,
        auth: AuthConfig { enabled: raw.auth.enabled },
        limits: LimitsConfig {
            requests_per_minute: Some(raw.limits.requests_per_minute).filter(|limit| *limit > 0),
            tokens: Some(raw.limits.tokens).filter(|limit| *limit > 0),
            window: raw.limits.window.0,
        },
        plugins: PluginsConfig {
            dirs: raw.plugins.dirs.clone(),
            load: raw.plugins.load.clone(),
            trust: raw.plugins.trust.into(),
            disabled: raw.plugins.disabled.clone(),
            upgrade: UpgradeConfig {
                share: raw.plugins.upgrade.share,
                requests: raw.plugins.upgrade.requests,
                hold: raw.plugins.upgrade.hold.0,
                failures: raw.plugins.upgrade.failures,
                drain: raw.plugins.upgrade.drain.0,
            },
            isolation: raw.plugins.isolation.clone(),
            workers: raw.plugins.workers.iter().map(|(id, own)| (id.clone(), worker(own))).collect(),
            settings: raw.plugins.settings.clone(),
        },
        models: checked_models(&raw.models),
        cache: CacheConfig {
            enabled: raw.cache.enabled,
            max_bytes: raw.cache.max_bytes.0,
            max_entry: raw.cache.max_entry.0,
            ttl: raw.cache.ttl.0,
            capabilities: raw.cache.capabilities.clone(),
        },
        compute: ComputeConfig { threads: raw.compute.threads, permits: raw.compute.permits },
        log: LogConfig { format: raw.log.format, level: raw.log.level.clone() },
        raw,
        sources,
        options,
    })
}

fn worker(own: &raw::Worker) -> WorkerConfig {
    let default = WorkerConfig::default();
    WorkerConfig {
        memory: own.memory.map(|memory| memory.0),
        threads: own.threads,
        cores: own.cores.unwrap_or(default.cores),
        polling: own.polling.unwrap_or(default.polling),
        progress: own.progress.map(|progress| progress.0),
        read: own.read.clone(),
        write: own.write.clone(),
        ports: own.ports.clone(),
        network: own.network,
        gpu: own.gpu,
    }
}

fn server(raw: &Raw, checks: &mut Checks<'_>) -> Option<ServerConfig> {
    let server = &raw.server;
    let address = parse_address(&server.address);
    match address {
        None => checks.wrong(
            &["server", "address"],
            &server.address,
            "is not an address with a port; write `127.0.0.1:8484`, `[::1]:8484` or `0.0.0.0:8484`",
        ),
        Some(address) if !raw.auth.enabled && !address.ip().is_loopback() => checks.wrong(
            &["server", "address"],
            &server.address,
            "would let everybody who reaches it be an admin, since `auth.enabled` is false; listen on 127.0.0.1, \
             or leave keys on",
        ),
        Some(_) => {}
    }
    if server.body_limit.0 < 1024 || usize::try_from(server.body_limit.0).is_err() {
        checks.wrong(&["server", "body_limit"], server.body_limit, "must be at least 1KiB");
    }
    // The parser behind the gate takes 128 KiB of head and 96 fields, whatever is configured.
    for (key, limit) in [("uri_limit", server.uri_limit), ("header_limit", server.header_limit)] {
        if !(256..=60 * 1024).contains(&limit.0) {
            checks.wrong(&["server", key], limit, "must be 256B to 60KiB");
        }
    }
    if !(1..=96).contains(&server.max_headers) {
        checks.wrong(&["server", "max_headers"], server.max_headers, "must be 1 to 96");
    }
    // serde_json itself refuses to go deeper than 128.
    if !(1..=128).contains(&server.json_depth) {
        checks.wrong(&["server", "json_depth"], server.json_depth, "must be 1 to 128");
    }
    for (key, span) in [
        ("first_byte_timeout", server.first_byte_timeout),
        ("header_timeout", server.header_timeout),
        ("body_timeout", server.body_timeout),
        ("body_total_timeout", server.body_total_timeout),
        ("send_timeout", server.send_timeout),
    ] {
        checks.some_time(&["server", key], span);
    }
    checks.at_least_one(&["server", "max_connections"], server.max_connections as u64);
    for origin in &server.cors_origins {
        if !is_origin(origin) {
            let message = format!(
                "`{origin}` is not an origin; write `https://app.example.com` without a path, or `*` for any"
            );
            checks.wrong(&["server", "cors_origins"], &server.cors_origins, message);
        }
    }
    if !raw.auth.enabled && server.cors_origins.iter().any(|origin| origin == "*") {
        checks.wrong(
            &["server", "cors_origins"],
            &server.cors_origins,
            "`*` would let every web page that is visited on this machine be an admin, since `auth.enabled` is false; \
             list the origins, or leave keys on",
        );
    }
    Some(ServerConfig {
        address: address?,
        workers: server.workers,
        body_limit: usize::try_from(server.body_limit.0).ok()?,
        uri_limit: usize::try_from(server.uri_limit.0).ok()?,
        header_limit: usize::try_from(server.header_limit.0).ok()?,
        max_headers: server.max_headers,
        json_depth: server.json_depth,
        first_byte_timeout: server.first_byte_timeout.0,
        header_timeout: server.header_timeout.0,
        body_timeout: server.body_timeout.0,
        body_total_timeout: server.body_total_timeout.0,
        body_rate: server.body_rate.0,
        send_timeout: server.send_timeout.0,
        keep_alive: server.keep_alive.0,
        max_connections: server.max_connections,
        drain: server.drain.0,
        cors_origins: server.cors_origins.clone(),
    })
}

/// No name is looked up: what a name means can change, and a configuration is read without a network.
fn parse_address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().ok()?))),
        None => text.parse().ok(),
    }
}

fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ', '*']))
}

fn fetch(fetch: &raw::Fetch, checks: &mut Checks<'_>) -> FetchConfig {
    let mut hosts = Vec::new();
    for host in &fetch.hosts {
        match host.parse() {
            Ok(site) => hosts.push(site),
            Err(wrong) => checks.wrong(&["fetch", "hosts"], &fetch.hosts, wrong),
        }
    }
    let mut networks = Vec::new();
    for network in &fetch.networks {
        match network.parse() {
            Ok(network) => networks.push(network),
            Err(_) => {
                let message = format!(
                    "`{network}` is not a network; write `10.1.2.0/24`, or `10.1.2.3/32` for one address"
                );
                checks.wrong(&["fetch", "networks"], &fetch.networks, message);
            }
        }
    }
    if fetch.max_bytes.0 < 1024 {
        checks.wrong(&["fetch", "max_bytes"], fetch.max_bytes, "must be at least 1KiB");
    }
    checks.some_time(&["fetch", "timeout"], fetch.timeout);
    let max_bytes = usize::try_from(fetch.max_bytes.0).unwrap_or(usize::MAX);
    FetchConfig { hosts, networks, max_bytes, timeout: fetch.timeout.0 }
}

/// A list of `level` and `target=level`.
fn is_filter(text: &str) -> bool {
    let is_level = |level: &str| {
        ["error", "warn", "info", "debug", "trace", "off"].iter().any(|name| name.eq_ignore_ascii_case(level))
    };
    text.split(',').all(|directive| match directive.trim().rsplit_once('=') {
        Some((target, level)) => !target.is_empty() && is_level(level),
        None => is_level(directive.trim()),
    })
}

fn plugins(plugins: &raw::Plugins, checks: &mut Checks<'_>) {
    checks.no_empty(&["plugins", "disabled"], &plugins.disabled);
    checks.no_empty_path(&["plugins", "dirs"], &plugins.dirs);
    checks.no_empty_path(&["plugins", "load"], &plugins.load);
    for (key, part) in [("share", plugins.upgrade.share), ("failures", plugins.upgrade.failures)] {
        if !(0.0..=1.0).contains(&part) {
            checks.wrong(&["plugins", "upgrade", key], part, "must be between 0 and 1");
        }
    }
}

fn models(models: &raw::Models, checks: &mut Checks<'_>) {
    checks.at_least_one(&["models", "max_queue"], models.max_queue as u64);
    checks.some_time(&["models", "default_deadline"], models.default_deadline);
    checks.some_time(&["models", "load_timeout"], models.load_timeout);
    if models.memory_budget == MemoryBudget::Bytes(0) {
        checks.wrong(&["models", "memory_budget"], models.memory_budget, "must be more than nothing");
    }
    checks.no_empty_path(&["models", "cards"], &models.cards);
    for (alias, target) in &models.aliases {
        let path = ["models", "aliases", alias];
        if alias.is_empty() || target.is_empty() {
            checks.wrong(&path, target, "a name and what it stands for must not be empty");
        } else if let Some(further) = models.aliases.get(target) {
            checks.wrong(
                &path,
                target,
                format!("is an alias itself; write what that stands for: `{further}`"),
            );
        } else if models.routes.contains_key(alias) {
            checks.wrong(&path, target, "`models.routes` has the same name; rename one of them");
        }
    }
    for (name, model) in &models.overrides {
        let path = |key| ["models", "override", name.as_str(), key];
        for (key, value) in [
            ("instances", model.instances.map(u64::from)),
            ("max_queue", model.max_queue.map(|n| n as u64)),
            ("max_batch", model.max_batch.map(|n| n as u64)),
        ] {
            checks.at_least_one(&path(key), value.unwrap_or(1));
        }
        if let Some(weight) = model.weight
            && !(0.01..=100.0).contains(&weight)
        {
            checks.wrong(&path("weight"), weight, "must be 0.01 to 100");
        }
        if let Some(window) = model.batch_window
            && window.0 > Duration::from_secs(10)
        {
            checks.wrong(
                &path("batch_window"),
                window,
                "must be at most 10s: every request of a batch waits as long",
            );
        }
    }
    for (name, route) in &models.routes {
        let path = |key| ["models", "routes", name.as_str(), key];
        if route.models.is_empty() || route.models.contains(&String::new()) {
            checks.wrong(&path("models"), &route.models, "must name at least one model, and no empty one");
        }
        if let Some(again) = route.models.iter().find(|model| models.routes.contains_key(*model)) {
            checks.wrong(
                &path("models"),
                &route.models,
                format!("`{again}` is a route; name its models instead"),
            );
        }
        let mut seen = std::collections::BTreeSet::new();
        if let Some(twice) = route.models.iter().find(|model| !seen.insert(*model)) {
            checks.wrong(&path("models"), &route.models, format!("names `{twice}` twice"));
        }
        if !(0.0..=1.0).contains(&route.escalate_below) {
            checks.wrong(&path("escalate_below"), route.escalate_below, "is a probability: must be 0 to 1");
        }
    }
}

fn checked_models(models: &raw::Models) -> ModelsConfig {
    let overrides = models.overrides.iter().map(|(name, model)| {
        let checked = Override {
            instances: model.instances,
            max_queue: model.max_queue,
            batch_window: model.batch_window.map(|span| span.0),
            max_batch: model.max_batch,
            keep_alive: model.keep_alive.map(|keep| keep.0),
            pin: model.pin.unwrap_or(false),
            weight: model.weight,
            parameters: model.parameters.clone(),
        };
        (name.clone(), checked)
    });
    let routes = models.routes.iter().map(|(name, route)| {
        (name.clone(), RouteConfig { models: route.models.clone(), escalate_below: route.escalate_below })
    });
    ModelsConfig {
        keep_alive: models.keep_alive.0,
        memory_budget: models.memory_budget,
        max_queue: models.max_queue,
        default_deadline: models.default_deadline.0,
        load_timeout: models.load_timeout.0,
        cards: models.cards.clone(),
        aliases: models.aliases.clone(),
        overrides: overrides.collect(),
        routes: routes.collect(),
    }
}

fn cache(cache: &raw::Cache, checks: &mut Checks<'_>) {
    if cache.max_entry.0 > cache.max_bytes.0 {
        let message = format!("must not be more than `cache.max_bytes`, which is {}", cache.max_bytes);
        checks.wrong(&["cache", "max_entry"], cache.max_entry, message);
    }
    checks.some_time(&["cache", "ttl"], cache.ttl);
    checks.no_empty(&["cache", "capabilities"], &cache.capabilities);
}
