use super::*;
use crate::license::Unwritten;
use crate::license::{Entry, Overage};
use crate::trust::Timestamp;
use std::sync::atomic::AtomicBool;

fn gate(state: State) -> Gate {
    Gate::new(Snapshot::of(state), Arc::default())
}

/// A gate for a licence with these members.
fn licensed(members: serde_json::Value) -> Gate {
    let mut licence = serde_json::json!({
        "v": 1, "id": "lic_1", "serial": 1, "issuer": "acme", "licensee": {"id": "c", "name": "C"},
        "product": {"plugin": "com.acme.x"}, "iat": "2027-01-01T00:00:00Z", "nbf": "2027-01-01T00:00:00Z",
    });
    licence.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    let licence: Licence = serde_json::from_value(licence).unwrap();
    let snapshot = Snapshot {
        standing: Standing::of(State::Valid),
        licence: Some(Arc::new(licence)),
        file: Some("lic_1.lic".to_owned()),
        ..Snapshot::default()
    };
    Gate::new(snapshot, Arc::default())
}

#[test]
fn nobody_has_looked_is_neither_licensed_nor_missing() {
    let code = |gate: &Gate| gate.admits("default").unwrap_err().code;
    assert_eq!(code(&Gate::default()), "plugin_license_unknown");
    assert_eq!(code(&Gate::new(Snapshot::missing(), Arc::default())), "plugin_license_missing");
}

#[test]
fn a_plugin_may_use_as_many_gpus_as_are_licensed() {
    let gate = licensed(serde_json::json!({"limits": {"gpus": 2}}));
    gate.meter().see_gpus(2);
    assert_eq!((gate.admits("default"), gate.standing().state), (Ok(()), State::Valid));
    gate.meter().see_gpus(3);
    let denied = gate.admits("default").unwrap_err();
    assert_eq!((denied.code, denied.field.as_str()), ("plugin_license_over_limit", "limits.gpus"));
    assert!(denied.reason.contains("2 are allowed") && denied.remedy.contains("CUDA_VISIBLE_DEVICES"));
    assert_eq!(gate.standing().state, State::OverLimit);
    assert_eq!(gate.meter().used().gpus, 3);
}

#[test]
fn a_renewal_takes_its_place_under_running_requests() {
    let gate = gate(State::Grace);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(
                        gate.admits("default"),
                        Ok(()),
                        "between two valid licences nobody is refused"
                    );
                }
            });
        }
        for _ in 0..10_000 {
            gate.set(Snapshot::of(State::Valid));
        }
        stop.store(true, Ordering::Relaxed);
    });
    gate.set(Snapshot::of(State::Expired));
    assert_eq!(gate.admits("default").unwrap_err().state, State::Expired);
    assert_eq!(gate.meter().refused().collect::<Vec<_>>(), [(State::Expired, 1)]);
}

#[test]
fn each_state_serves_or_not() {
    for state in State::ALL {
        assert_eq!(gate(state).admits("default").is_ok(), state.serves(), "{state}");
        assert_eq!(gate(state).loads().is_ok(), state.serves(), "{state}");
        let optional = Gate::optional(Snapshot::of(state), Arc::default());
        assert!(optional.admits("default").is_ok() && optional.feature("default", "x").is_none(), "{state}");
    }
}

#[test]
fn tokens_of_a_month_are_counted_and_end_with_it() {
    let gate = licensed(serde_json::json!({"limits": {"tokens_month": 100}}));
    gate.enter("default").unwrap().used(99);
    assert_eq!(gate.standing().state, State::Valid);
    gate.enter("other").unwrap().used(50);
    let denial = gate.enter("default").unwrap_err();
    assert_eq!((denial.code, &*denial.field), ("plugin_license_over_limit", "limits.tokens_month"));
    assert_eq!((denial.licence.as_deref(), denial.file.as_deref()), (Some("lic_1"), Some("lic_1.lic")));
    assert_eq!(gate.standing().state, State::OverLimit);
    assert!(gate.loads().is_ok(), "it may be opened: the month ends");
    let unwritten = gate.meter().take_unwritten();
    let of = |tenant: &str, tokens| Unwritten { tenant: tenant.to_owned(), tokens, requests: 1 };
    assert_eq!(unwritten, [of("default", 99), of("other", 50)]);
    assert_eq!(gate.meter().take_unwritten(), []);
    gate.meter().put_back(&unwritten[1]);
    assert_eq!(gate.meter().take_unwritten(), [of("other", 50)]);
    gate.meter().begin_month();
    gate.enter("default").unwrap();
}

#[test]
fn what_was_written_counts_after_a_restart() {
    let gate = licensed(serde_json::json!({"limits": {"tokens_month": 100}, "overage": "pct:10"}));
    let entry = Entry {
        at: Timestamp::default(),
        plugin: "com.acme.x".to_owned(),
        licence: "lic_1".to_owned(),
        tenant: "default".to_owned(),
        month: "2027-01".to_owned(),
        tokens: 55,
        requests: 3,
        peak_nodes: 1,
        peak_gpus: 0,
    };
    gate.meter().restore([&entry].into_iter());
    gate.enter("default").unwrap().used(54);
    gate.enter("default").unwrap().used(1);
    assert_eq!(gate.enter("default").unwrap_err().reason, "110 are allowed, and this would be more");
}

#[test]
fn requests_under_way_and_instances_are_bounded_and_come_back() {
    let gate = licensed(serde_json::json!({"limits": {"concurrency": 2, "instances": 3}}));
    let first = gate.enter("default").unwrap();
    let second = gate.enter("default").unwrap();
    let denial = gate.enter("default").unwrap_err();
    assert!(denial.passes, "{denial:?}");
    assert_eq!(gate.standing().state, State::Valid, "one request less, and it is well");
    drop(first);
    gate.enter("default").unwrap().used(7);
    drop(second);

    let seats = gate.seats(2).unwrap();
    assert_eq!(gate.seats(2).unwrap_err().field, "limits.instances");
    let one = gate.seats(1).unwrap();
    drop(seats);
    assert!(gate.seats(2).is_ok());
    drop(one);
    assert_eq!(gate.meter().used().instances, 0);
}

#[test]
fn a_tenant_too_many_is_refused_and_those_before_it_are_not() {
    let gate = licensed(serde_json::json!({"limits": {"tenants": 2}}));
    for tenant in ["a", "b", "a"] {
        gate.enter(tenant).unwrap();
    }
    assert_eq!(gate.enter("c").unwrap_err().field, "limits.tenants");
    gate.enter("a").unwrap();
    assert_eq!(gate.standing().state, State::Valid);
}

#[test]
fn a_tenant_has_what_the_licence_gives_it() {
    let gate = licensed(serde_json::json!({
        "features": {"fp8": true, "int4": false, "max_lora": 8},
        "tenants": {"default": {"features": ["fp8"]}, "ten_x": {"limits": {"tokens_month": 10}}},
    }));
    assert_eq!(gate.feature("default", "fp8"), Some(1));
    assert_eq!(gate.feature("default", "max_lora"), None);
    assert_eq!(gate.feature("ten_x", "max_lora"), Some(8));
    assert_eq!(gate.feature("ten_x", "int4"), None);
    gate.enter("ten_x").unwrap().used(10);
    assert_eq!(gate.enter("ten_x").unwrap_err().field, "tenants.ten_x.limits.tokens_month");
    assert_eq!(gate.feature("ten_x", "fp8"), None, "it has used what it had");
    gate.enter("default").unwrap();
    assert_eq!(gate.enter("stranger").unwrap_err().code, "plugin_license_tenant");
    gate.set(Snapshot::of(State::Expired));
    assert_eq!(gate.feature("default", "fp8"), None);
}

#[test]
fn what_is_reported_is_not_blocked() {
    let gate = licensed(serde_json::json!({"limits": {"tokens_month": 1}, "overage": "report"}));
    assert_eq!(gate.snapshot().licence.as_ref().unwrap().overage, Overage::Report);
    gate.enter("default").unwrap().used(100);
    assert!(gate.enter("default").is_ok());
}

#[test]
fn many_threads_count_every_token() {
    let gate = licensed(serde_json::json!({}));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let gate = &gate;
            scope.spawn(move || {
                for _ in 0..5_000 {
                    gate.enter(if thread % 2 == 0 { "a" } else { "b" }).unwrap().used(3);
                }
            });
        }
    });
    let used = gate.meter().used();
    assert_eq!((used.tokens_month, used.concurrency, used.tenants), (60_000, 0, 2));
    assert!(gate.meter().take_unwritten().iter().all(|of| (of.tokens, of.requests) == (30_000, 10_000)));
}

/// Many at once: more than are allowed are never inside, and whoever finds nobody inside is let in.
#[test]
fn a_limit_of_requests_under_way_holds_when_many_ask_at_once() {
    let limits = serde_json::json!({"concurrency": 1});
    for gate in [
        licensed(serde_json::json!({ "limits": limits })),
        licensed(serde_json::json!({"tenants": {"default": {"limits": limits}}})),
    ] {
        let (inside, most, passes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Ok(pass) = gate.enter("default") {
                            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            passes.fetch_add(1, Ordering::SeqCst);
                            drop(pass);
                        }
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        assert!(passes.into_inner() > 0);
        assert_eq!(gate.meter().used().concurrency, 0);
        gate.enter("default").unwrap();
    }
}

/// One who is refused is no tenant of this month, and of many new ones no more are let in than may be.
#[test]
fn a_limit_of_tenants_holds_when_many_new_ones_ask_at_once() {
    for _ in 0..200 {
        let gate = licensed(serde_json::json!({"limits": {"tenants": 2}}));
        let let_in = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for place in 0..8 {
                let (gate, let_in) = (&gate, &let_in);
                scope.spawn(move || {
                    let_in.fetch_add(gate.enter(&format!("tenant {place}")).is_ok().into(), Ordering::SeqCst)
                });
            }
        });
        assert_eq!((let_in.into_inner(), gate.meter().used().tenants), (2, 2));
    }
}

#[test]
fn a_request_that_goes_on_with_another_version_counts_once() {
    let gate = licensed(serde_json::json!({"limits": {"concurrency": 1}}));
    let pass = gate.enter("default").unwrap();
    assert_eq!(gate.carries("default"), Ok(()));
    assert!(gate.admits("default").is_err());
    drop(pass);
}
