//! The crossing into a plugin and back, alone, and into a worker; then the hop: the same through queue and lane thread.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure says so and ends")]

mod support;

use backplane::bench::Crossing;
use backplane::isolation::{Confinement, Granted, Launch, OnCrash, OpenLimit};
use backplane::{Caller, Host, Request};
use backplane_registry::license::{Gate, Snapshot, Standing, State};
use futures::executor::block_on;
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::Against::{AtMost, Nothing, Peer};
use support::{Table, cpu, median, repeat};

/// Of this process, so of the host. A plugin is a library with an allocator of its own, which is not counted.
#[global_allocator]
static ALLOCATIONS: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Requests made ahead: few enough to stay in the cache, as one that was just made is.
const CALLS: usize = 128;

fn main() {
    let plugins = support::plugins(&["backplane-echo"]);
    let mut table = Table::new("abi");
    let null = support::null(plugins.path());
    crossing(&mut table, &null);
    worker(&mut table, &null);
    licence(&mut table);
    // Callers without a key have no limits.
    let running =
        support::host(plugins.path(), false, "[limits]\ntokens = 1_000_000_000_000\nwindow = '24h'\n");
    let null = |model: &str| Request::new(Caller::internal("bench"), "bench.null", "{}").model(model);
    let echo = |model: &str| {
        Request::new(Caller::internal("bench"), "echo", json!({"text": "hello"}).to_string()).model(model)
    };
    let host = &running.host;
    for model in ["null-continuous", "null"] {
        hop(&mut table, host, &format!("`{model}`"), || null(model));
    }
    let budgeted = Caller { key: Some("bench".into()), ..Caller::internal("bench") };
    hop(&mut table, host, "`null`, from a key with a token budget", || {
        let mut request = null("null");
        request.caller = budgeted.clone();
        request
    });
    for model in ["echo-continuous", "echo"] {
        hop(&mut table, host, &format!("`{model}`"), || echo(model));
    }
}

/// `submit` to `finish` through the loader, on the caller's thread.
fn crossing(table: &mut Table, library: &std::path::Path) {
    let crossing = Crossing::open(library, &json!({"name": "null", "parameters": {}}).to_string()).unwrap();
    let prepare = || (0..CALLS).map(|_| crossing.request("bench.null", "{}")).collect::<Vec<_>>();
    let mut allocations = 0;
    let mut round = || {
        let ready = prepare();
        let region = Region::new(&INSTRUMENTED_SYSTEM);
        let start = Instant::now();
        ready.iter().for_each(|request| crossing.call(request).unwrap());
        let elapsed = start.elapsed().as_secs_f64();
        allocations = region.change().allocations;
        elapsed / CALLS as f64 * 1e9
    };
    (0..100).for_each(|_| _ = round());
    let call = repeat(2001, &mut round);
    let made = repeat(2001, || support::timed(|| drop(prepare())) / CALLS as f64 * 1e9);
    let clock = repeat(2001, || {
        let read = || (0..CALLS).for_each(|_| _ = std::hint::black_box(Instant::now()));
        support::timed(read) / CALLS as f64 * 1e9
    });
    table.row("null request, submit to end read, one thread", call, "ns", AtMost(200.0));
    table.row("  allocations of the host in it", allocations as f64 / CALLS as f64, "", AtMost(0.0));
    table.row("  reading the clock once, which it does twice", clock, "ns", Nothing);
    table.row("making and dropping a request", made, "ns", Nothing);
    let woken = repeat(5, wake);
    table.row("waking a thread and being woken (this machine's floor)", woken, "µs p50", Nothing);
}

/// The same library in a confined worker and in-process, by the size of what is asked.
fn worker(table: &mut Table, library: &std::path::Path) {
    let launch = Launch {
        program: support::worker(),
        library: library.to_owned(),
        sealed: None,
        id: "bench.null".to_owned(),
        version: String::new(),
        confinement: Confinement::Sandbox(Granted::default()),
        limit: Duration::from_secs(10),
        open_limit: OpenLimit::default(),
        per_instance: false,
        polling: true,
        progress: None,
        on_crash: OnCrash::default(),
        quarantine: None,
    };
    let model = |chunks: usize| json!({"name": "null", "parameters": {"chunks": chunks}}).to_string();
    let here = |chunks| Crossing::open(library, &model(chunks)).unwrap();
    let there = |chunks| Crossing::open_in(Some(launch.clone()), library, &model(chunks)).unwrap();
    polling(table, &launch, library);
    tokens(table, &here, &there);
    restart(table, &there);
    let (here, there) = (here(0), there(0));
    for (size, rounds) in [(64, 2000), (64 << 10, 1000), (1 << 20, 300), (64 << 20, 7)] {
        let params = json!({"padding": "x".repeat(size)}).to_string();
        let p50 = |crossing: &Crossing| {
            let once = || {
                let request = crossing.request("bench.null", &params);
                support::timed(|| crossing.call(&request).unwrap()) * 1e6
            };
            (0..rounds / 10).for_each(|_| _ = once());
            repeat(rounds, once)
        };
        let (here, there) = (p50(&here), p50(&there));
        let what = if size < 1 << 20 { format!("{size} B") } else { format!("{} MiB", size >> 20) };
        table.row(format!("a request of {what} to a worker and back"), there, "µs p50", Nothing);
        let limit = if size == 64 { AtMost(12.0) } else { Nothing };
        table.row("  more than in-process", there - here, "µs p50", limit);
    }
}

/// What it brings that who waits looks for a moment before it sleeps, and what it takes.
fn polling(table: &mut Table, launch: &Launch, library: &std::path::Path) {
    const ROUND: usize = 500;
    let open = |polling| {
        let before = workers();
        let launch = Launch { polling, ..launch.clone() };
        let model = json!({"name": "null", "parameters": {}}).to_string();
        let crossing = Crossing::open_in(Some(launch), library, &model).unwrap();
        crossing.call(&crossing.request("bench.null", "{}")).unwrap();
        let worker = workers().into_iter().find(|worker| !before.contains(worker)).unwrap();
        (crossing, worker.cast_unsigned())
    };
    let both = [open(true), open(false)];
    // In turns, so that what else the machine does meets both.
    let turns = |round: &dyn Fn(&Crossing) -> f64| {
        let mut all = [const { (Vec::new(), Vec::new()) }; 2];
        for _ in 0..20 {
            for ((crossing, worker), (values, busy)) in both.iter().zip(&mut all) {
                let used = || cpu() + support::cpu_of(*worker);
                let before = used();
                values.push(round(crossing));
                busy.push((used() - before) / ROUND as f64 * 1e6);
            }
        }
        all.map(|(values, busy)| (median(values), median(busy)))
    };
    let ask = |crossing: &Crossing| crossing.call(&crossing.request("bench.null", "{}")).unwrap();
    let [with, without] = turns(&|crossing| repeat(ROUND, || support::timed(|| ask(crossing)) * 1e6));
    table.row("a null request to a worker and back", with.0, "µs p50", Peer("not polling", without.0));
    table.row("  CPU time of both processes", with.1, "µs", Peer("not polling", without.1));
    let pause = Duration::from_micros(200);
    let [with, without] = turns(&|crossing| {
        repeat(ROUND, || {
            std::thread::sleep(pause);
            support::timed(|| ask(crossing)) * 1e6
        })
    });
    table.row(
        "  with 200 µs and more between two requests",
        with.0,
        "µs p50",
        Peer("not polling", without.0),
    );
    table.row("  CPU time of both processes", with.1, "µs", Peer("not polling", without.1));
    let [with, without] = turns(&|crossing| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            (0..4).for_each(|_| _ = scope.spawn(|| (0..ROUND / 4).for_each(|_| ask(crossing))));
        });
        ROUND as f64 / start.elapsed().as_secs_f64()
    });
    table.row("  four clients at once", with.0, "/s", Peer("not polling", without.0));
    table.row("  CPU time of both processes", with.1, "µs", Peer("not polling", without.1));
}

/// A piece of an answer, of many that are said one after the other.
fn tokens(table: &mut Table, here: &dyn Fn(usize) -> Crossing, there: &dyn Fn(usize) -> Crossing) {
    /// Fewer than a host keeps for its reader, who begins to read when the last has come.
    const TOKENS: usize = 200;
    let each = |open: &dyn Fn(usize) -> Crossing| {
        let p50 = |crossing: &Crossing| {
            repeat(300, || {
                let request = crossing.request("bench.null", "{}");
                support::timed(|| crossing.call(&request).unwrap()) * 1e6
            })
        };
        (p50(&open(TOKENS)) - p50(&open(0))) / TOKENS as f64
    };
    let (here, there) = (each(here), each(there));
    table.row("a streamed token through a worker, 200 in a row", there, "µs p50", Nothing);
    table.row("  more than in-process", there - here, "µs p50", AtMost(3.0));
}

/// From the end of a worker to the next answer.
fn restart(table: &mut Table, open: &dyn Fn(usize) -> Crossing) {
    let once = || {
        let before = workers();
        let crossing = open(0);
        let ask = || crossing.call(&crossing.request("bench.null", "{}"));
        ask().unwrap();
        let worker = workers().into_iter().find(|worker| !before.contains(worker)).unwrap();
        let pid = rustix::process::Pid::from_raw(worker).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        // One that is being killed may still take a request with it.
        support::timed(|| while ask().is_err() {}) * 1e3
    };
    table.row(
        "a worker is killed: until the next answer, without a model",
        repeat(5, once),
        "ms p50",
        AtMost(2000.0),
    );
}

/// The workers of this process.
fn workers() -> Vec<i32> {
    let own = std::process::id().to_string();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Its name, its state, its parent.
        let mut fields = stat.split([' ', '(', ')']).filter(|field| !field.is_empty()).skip(1);
        fields.next() == Some("backplane-worke") && fields.nth(1) == Some(&own)
    };
    pids.filter(ours).collect()
}

/// What a request of a licensed plugin waits for, before it is let in.
fn licence(table: &mut Table) {
    let licensed = |members: Value| {
        let mut licence = json!({
            "v": 1, "id": "lic_1", "serial": 1, "issuer": "acme", "licensee": {"id": "c", "name": "C"},
            "product": {"plugin": "com.acme.x"}, "iat": "2026-01-01T00:00:00Z", "nbf": "2026-01-01T00:00:00Z",
        });
        licence.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        let licence = Some(Arc::new(serde_json::from_value(licence).unwrap()));
        let snapshot = Snapshot { standing: Standing::of(State::Valid), licence, ..Snapshot::default() };
        Gate::new(snapshot, Arc::default())
    };
    let terms = json!({
        "features": {"fp8": true}, "limits": {"tokens_month": 1_000_000_000, "concurrency": 64},
        "tenants": {"default": {"features": ["fp8"]}, "other": {}},
    });
    for (what, members) in [("a date alone", json!({})), ("tenants, tokens a month, concurrency", terms)] {
        let gate = licensed(members);
        let each = |work: &dyn Fn()| {
            repeat(501, || support::timed(|| (0..1000).for_each(|_| work())) / 1000.0 * 1e9)
        };
        let check = each(&|| assert!(std::hint::black_box(gate.admits("default")).is_ok()));
        let whole = each(&|| gate.enter("default").unwrap().used(std::hint::black_box(1)));
        table.row(format!("licence check: {what}"), check, "ns", AtMost(50.0));
        table.row("  with counting it in and out", whole, "ns", Nothing);
    }
}

/// What two threads take to wake each other, with nothing done in between.
fn wake() -> f64 {
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || asked.iter().for_each(|()| tell.send(()).unwrap()));
        let times = (0..2000).map(|_| {
            support::timed(|| {
                ask.send(()).unwrap();
                told.recv().unwrap();
            }) * 1e6
        });
        let p50 = median(times.collect());
        drop(ask);
        p50
    })
}

/// One client, one request at a time, through the whole request function.
fn hop(table: &mut Table, host: &Host, what: &str, request: impl Fn() -> Request) {
    const ROUND: usize = 2000;
    let serve = || block_on(async { host.serve(request()).await.unwrap().collect().await.unwrap() });
    (0..200).for_each(|_| drop(serve()));
    let (mut p50, mut busy, mut admits, mut allocations) = (vec![], vec![], vec![], 0.0);
    for _ in 0..7 {
        let region = Region::new(&INSTRUMENTED_SYSTEM);
        let before = cpu();
        let mut times = Vec::with_capacity(ROUND);
        let mut admit = Vec::with_capacity(ROUND);
        for _ in 0..ROUND {
            let start = Instant::now();
            let answer = serve();
            times.push(start.elapsed().as_secs_f64() * 1e6);
            admit.push(answer.done.timing.admit.as_secs_f64() * 1e6);
        }
        busy.push((cpu() - before) / ROUND as f64 * 1e6);
        allocations = region.change().allocations as f64 / ROUND as f64;
        p50.push(median(times));
        admits.push(median(admit));
    }
    let (p50, busy) = (median(p50), median(busy));
    table.row(format!("hop: Host::serve, {what}"), p50, "µs p50", Nothing);
    table.row("  CPU time, all threads of the process", busy, "µs", Peer("p50", p50));
    table.row("  admission: route, limits, cache look-up", median(admits), "µs p50", AtMost(4.0));
    table.row("  allocations of the host", allocations, "", Nothing);
}
