//! The policy in virtual time: invariants over any order of calls, and shares over simulated seconds.

use super::*;
use proptest::prelude::*;
use std::collections::BinaryHeap;

const MS: Nanos = 1_000_000;

/// An instance in a simulation: wants threads, holds them, pauses, again.
struct Actor {
    seat: SeatId,
    want: u32,
    hold: Nanos,
    gap: Nanos,
    steps: u64,
    longest_wait: Nanos,
    asked: Option<(WaiterId, Nanos)>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ask(usize),
    Release(usize, u32),
    Look,
}

/// Runs every actor for `length`. A step takes `hold` with however many threads were granted.
fn simulate(policy: &mut Policy, actors: &mut [Actor], length: Nanos) {
    let mut events = BinaryHeap::new();
    let mut order = 0_u64;
    let mut push = |events: &mut BinaryHeap<_>, at: Nanos, event: Event| {
        order += 1;
        events.push(std::cmp::Reverse((at, order, event)));
    };
    for at in 0..actors.len() {
        push(&mut events, at as Nanos * 1000, Event::Ask(at));
    }
    while let Some(std::cmp::Reverse((now, _, event))) = events.pop() {
        if now >= length {
            return;
        }
        match event {
            Event::Ask(at) => {
                actors[at].asked = Some((policy.ask(actors[at].seat, actors[at].want, now), now))
            }
            Event::Release(at, count) => {
                assert!(policy.release(actors[at].seat, count, now));
                actors[at].steps += 1;
                push(&mut events, now + actors[at].gap, Event::Ask(at));
            }
            Event::Look => {}
        }
        policy.dispatch(now, |id, count| {
            let asked = |actor: &Actor| actor.asked.is_some_and(|(waiter, _)| waiter == id);
            let at = actors.iter().position(asked).expect("only those who asked are granted");
            let (_, since) = actors[at].asked.take().expect("just found");
            actors[at].longest_wait = actors[at].longest_wait.max(now - since);
            push(&mut events, now + actors[at].hold, Event::Release(at, count));
        });
        if policy.waiting() > 0 && policy.free > 0 {
            push(&mut events, now + MS / 10, Event::Look);
        }
    }
}

fn actor(policy: &mut Policy, model: &str, weight: f64, want: u32, hold: Nanos, gap: Nanos) -> Actor {
    let seat = policy.join(model, weight);
    Actor { seat, want, hold, gap, steps: 0, longest_wait: 0, asked: None }
}

/// Thread seconds a model used.
fn used(policy: &Policy, model: &str) -> f64 {
    policy.groups().find(|group| &*group.name == model).map_or(0.0, |group| group.used as f64 / 1e9)
}

#[test]
fn a_chat_keeps_its_share_beside_saturating_graph_runs() {
    for instances in [1, 2, 4, 8] {
        let mut policy = Policy::new(2);
        let mut actors = vec![actor(&mut policy, "chat", 1.0, 1, 7 * MS, MS / 10)];
        actors.extend((0..instances).map(|_| actor(&mut policy, "onnx", 1.0, 2, 4 * MS, MS / 50)));
        simulate(&mut policy, &mut actors, 10_000 * MS);
        let alone = 10_000.0 / 7.1;
        let kept = actors[0].steps as f64 / alone;
        assert!(kept >= 0.98, "{instances} instances: the chat kept {kept:.3} of its speed");
        assert!(used(&policy, "onnx") >= 9.5, "the other thread is used: {}", used(&policy, "onnx"));
    }
}

#[test]
fn a_chat_that_pauses_leaves_both_threads_to_the_others() {
    let mut policy = Policy::new(2);
    let mut actors: Vec<Actor> = vec![actor(&mut policy, "chat", 1.0, 1, 7 * MS, 400 * MS)];
    actors.extend((0..2).map(|_| actor(&mut policy, "onnx", 1.0, 1, 4 * MS, 0)));
    simulate(&mut policy, &mut actors, 10_000 * MS);
    assert!(used(&policy, "onnx") >= 19.0, "{}", used(&policy, "onnx"));
    assert!(actors[0].longest_wait <= 4 * MS, "one run of the others, not more");
}

#[test]
fn use_follows_weight() {
    for (threads, weights) in [
        (1, vec![1.0, 1.0]),
        (1, vec![3.0, 1.0]),
        (2, vec![3.0, 1.0]),
        (2, vec![1.0, 1.0, 1.0]),
        (16, vec![5.0, 2.0, 1.0]),
    ] {
        let mut policy = Policy::new(threads);
        let mut actors = Vec::new();
        for (at, weight) in weights.iter().enumerate() {
            for copy in 0..threads {
                let hold = MS * (3 + 2 * at as Nanos) + Nanos::from(copy) * 1000;
                actors.push(actor(&mut policy, &format!("model{at}"), *weight, 1, hold, 0));
            }
        }
        simulate(&mut policy, &mut actors, 20_000 * MS);
        for (at, weight) in weights.iter().enumerate() {
            let fair = 20.0 * f64::from(threads) * weight / weights.iter().sum::<f64>();
            let got = used(&policy, &format!("model{at}"));
            assert!(
                (got - fair).abs() <= 0.05 * fair,
                "{threads} threads, {weights:?}: model{at} {got} of {fair}"
            );
        }
    }
}

#[test]
fn a_model_with_many_instances_weighs_no_more_than_one_with_one() {
    let mut policy = Policy::new(1);
    let mut actors = vec![actor(&mut policy, "one", 1.0, 1, 5 * MS, 0)];
    actors.extend((0..9).map(|_| actor(&mut policy, "nine", 1.0, 1, 5 * MS, 0)));
    simulate(&mut policy, &mut actors, 10_000 * MS);
    assert!((used(&policy, "one") - 5.0).abs() < 0.25, "{}", used(&policy, "one"));
}

#[test]
fn idleness_saves_nothing_up() {
    let mut policy = Policy::new(1);
    let mut busy = vec![actor(&mut policy, "busy", 1.0, 1, MS, 0)];
    let late = policy.join("late", 1.0);
    simulate(&mut policy, &mut busy, 60_000 * MS);
    // `busy` is in the middle of a step or waits; from here both always want the thread.
    let (mut now, mut got) = (60_000 * MS, [0_u32; 2]);
    policy.leave(busy[0].seat, now);
    let seats = [policy.join("busy", 1.0), late];
    let mut asked = seats.map(|seat| policy.ask(seat, 1, now));
    for _ in 0..100 {
        let mut winner = 0;
        policy
            .dispatch(now, |id, _| winner = asked.iter().position(|other| *other == id).expect("one of two"));
        got[winner] += 1;
        now += MS;
        assert!(policy.release(seats[winner], 1, now));
        asked[winner] = policy.ask(seats[winner], 1, now);
    }
    assert!(got[0].abs_diff(got[1]) <= 2, "{got:?}");
}

#[test]
fn spare_threads_are_lent_and_come_back() {
    let mut policy = Policy::new(4);
    let (a, b) = (policy.join("a", 1.0), policy.join("b", 1.0));
    policy.ask(a, 9, 0);
    let mut grants = Vec::new();
    policy.dispatch(0, |_, count| grants.push(count));
    assert_eq!(grants, [4], "nobody else wants them");

    let waiting = policy.ask(b, 2, MS);
    policy.dispatch(MS, |_, _| panic!("none is free"));
    assert!(policy.release(a, 4, 2 * MS));
    policy.ask(a, 4, 2 * MS);
    grants.clear();
    policy.dispatch(2 * MS, |id, count| grants.push(if id == waiting { count } else { 10 + count }));
    assert_eq!(grants, [2, 12], "b had used nothing, so it is first; each gets half");
}

#[test]
fn a_release_of_more_than_is_held_changes_nothing() {
    let mut policy = Policy::new(2);
    let seat = policy.join("a", 1.0);
    policy.ask(seat, 1, 0);
    policy.dispatch(0, |_, _| ());
    assert!(!policy.release(seat, 2, 1));
    assert_eq!(policy.granted(), 1);
    assert!(policy.release(seat, 1, 1));
    assert_eq!(policy.granted(), 0);
}

#[test]
fn leaving_gives_everything_back() {
    let mut policy = Policy::new(2);
    let seat = policy.join("a", 1.0);
    policy.ask(seat, 2, 0);
    policy.dispatch(0, |_, _| ());
    let waits = policy.ask(seat, 1, 0);
    assert_eq!(policy.leave(seat, 1), [waits]);
    assert_eq!((policy.granted(), policy.waiting()), (0, 0));
    assert!(policy.leave(seat, 2).is_empty(), "again is harmless");
}

#[derive(Clone, Debug)]
enum Call {
    Ask { seat: usize, want: u32 },
    Release { seat: usize, count: u32 },
    Abandon(usize),
    Leave(usize),
    Look,
}

fn calls() -> impl Strategy<Value = Vec<(Nanos, Call)>> {
    let call = prop_oneof![
        4 => (0..5_usize, 1..9_u32).prop_map(|(seat, want)| Call::Ask { seat, want }),
        4 => (0..5_usize, 1..4_u32).prop_map(|(seat, count)| Call::Release { seat, count }),
        1 => (0..20_usize).prop_map(Call::Abandon),
        1 => (0..5_usize).prop_map(Call::Leave),
        1 => Just(Call::Look),
    ];
    prop::collection::vec((0..5 * MS, call), 1..200)
}

proptest! {
    #[test]
    fn whatever_is_called_no_thread_is_lost_made_or_left_idle(
        threads in 1..9_u32, weights in prop::collection::vec(0.1..9.0_f64, 5), calls in calls()
    ) {
        let mut policy = Policy::new(threads);
        let mut seats: Vec<SeatId> =
            weights.iter().enumerate().map(|(at, w)| policy.join(&format!("m{}", at % 3), *w)).collect();
        let mut held = [0_u32; 5];
        let mut asked: Vec<(WaiterId, usize)> = Vec::new();
        let mut now = 0;
        for (after, call) in calls {
            now += after;
            match call {
                Call::Ask { seat, want } => asked.push((policy.ask(seats[seat], want, now), seat)),
                Call::Release { seat, count } => {
                    prop_assert_eq!(policy.release(seats[seat], count, now), count <= held[seat]);
                    if count <= held[seat] { held[seat] -= count; }
                }
                Call::Abandon(at) if at < asked.len() => policy.abandon(asked.remove(at).0),
                Call::Abandon(_) | Call::Look => {}
                Call::Leave(seat) => {
                    let dropped = policy.leave(seats[seat], now);
                    prop_assert_eq!(dropped.len(), asked.iter().filter(|(_, of)| *of == seat).count());
                    asked.retain(|(_, of)| *of != seat);
                    held[seat] = 0;
                    seats[seat] = policy.join(&format!("m{}", seat % 3), weights[seat]);
                }
            }
            let mut wrong = Vec::new();
            policy.dispatch(now, |id, count| match asked.iter().position(|(waiter, _)| *waiter == id) {
                Some(at) if count >= 1 => held[asked.remove(at).1] += count,
                _ => wrong.push((id, count)),
            });
            prop_assert!(wrong.is_empty(), "granted to nobody, or nothing: {wrong:?}");
            prop_assert_eq!(policy.granted(), held.iter().sum::<u32>());
            prop_assert!(policy.granted() <= threads);
            prop_assert_eq!(policy.waiting(), asked.len());
            if policy.waiting() > 0 {
                prop_assert!(threads - policy.granted() <= policy.kept(now), "a free thread, and somebody waits");
            }
        }
    }

    #[test]
    fn nobody_starves(
        threads in 1..5_u32,
        models in prop::collection::vec((0.2..5.0_f64, 1..4_u32, 1..20_u64, 0..3_u64), 2..6)
    ) {
        let mut policy = Policy::new(threads);
        let mut actors: Vec<Actor> = models.iter().enumerate()
            .map(|(at, (weight, want, hold, gap))| actor(&mut policy, &format!("m{at}"), *weight, *want, hold * MS, gap * MS))
            .collect();
        simulate(&mut policy, &mut actors, 5_000 * MS);
        // Each of the others may run until its pace has caught up: a run each, and more by the ratio of weights.
        let weights: f64 = models.iter().map(|model| model.0).sum();
        for (actor, (weight, ..)) in actors.iter().zip(&models) {
            let bound = 2.0 * 20.0 * 4.0 * models.len() as f64 * (weights / weight);
            prop_assert!((actor.longest_wait / MS) as f64 <= bound, "waited {} ms", actor.longest_wait / MS);
            prop_assert!(actor.steps > 0);
        }
    }
}
