//! Where a prompt starts, and how a step's prompt tokens are shared out. Pure.

/// A sequence of the context, as the choice sees it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Tokens whose keys and values are in the cache, from position 0.
    pub cached: &'a [i32],
    /// The whole prompt, while it is still being worked through; otherwise empty.
    pub planned: &'a [i32],
    /// Whether an answer is being made here.
    pub busy: bool,
    /// Larger is more recent.
    pub touched: u64,
}

/// Where to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// In this slot, keeping so many of its tokens.
    Here { slot: usize, keep: usize },
    /// In this slot, after taking over so many tokens of another.
    Copy { slot: usize, from: usize, keep: usize },
    /// Not yet: a slot is just working through the same prompt, and its work can then be taken over.
    Wait,
}

/// Waiting for another slot must spare at least this many tokens: about what a step beside answers takes.
const WORTH_WAITING: usize = 16;

/// Chooses a slot for `prompt`; `None` when all are busy.
///
/// The slot that holds most of the prompt is continued, unless that would throw away more than it keeps: then its
/// tokens are copied into the slot that was idle longest, so that a shared system prompt does not cost a
/// conversation its cache. At least one token is left to compute, since its logits are needed. Where the cache
/// cannot be cut or copied (`divisible` is false: recurrent models), only a slot that is a prefix as a whole is
/// continued.
pub fn choose(slots: &[View<'_>], prompt: &[i32], divisible: bool) -> Option<Start> {
    let most = prompt.len().saturating_sub(1);
    let oldest = oldest(slots)?;
    if !divisible {
        let whole = (0..slots.len())
            .filter(|&i| {
                !slots[i].busy && slots[i].cached.len() <= most && prompt.starts_with(slots[i].cached)
            })
            .max_by_key(|&i| slots[i].cached.len());
        return Some(match whole {
            Some(slot) => Start::Here { slot, keep: slots[slot].cached.len() },
            None => Start::Here { slot: oldest, keep: 0 },
        });
    }
    let common = |tokens: &[i32]| common_prefix(tokens, prompt).min(most);
    // Of equals the free one, so that nothing needs copying.
    let (best, keep) = (0..slots.len())
        .map(|i| (i, common(slots[i].cached)))
        .max_by_key(|&(i, keep)| (keep, !slots[i].busy, slots[i].touched))?;
    let coming = slots.iter().filter(|slot| slot.busy).map(|slot| common(slot.planned)).max().unwrap_or(0);
    Some(if coming >= keep + WORTH_WAITING {
        Start::Wait
    } else if keep == 0 {
        Start::Here { slot: oldest, keep: 0 }
    } else if !slots[best].busy && 2 * keep >= slots[best].cached.len() {
        Start::Here { slot: best, keep }
    } else if best == oldest {
        Start::Here { slot: oldest, keep }
    } else {
        Start::Copy { slot: oldest, from: best, keep }
    })
}

/// The free slot whose tokens are missed least; `None` when all are busy.
pub fn oldest(slots: &[View<'_>]) -> Option<usize> {
    (0..slots.len())
        .filter(|&i| !slots[i].busy)
        .min_by_key(|&i| (!slots[i].cached.is_empty(), slots[i].touched))
}

/// Shares `budget` prompt tokens among slots that need so many each: equally, and what one does not need goes to
/// the others. A short prompt beside a long one is through at once, and the long one still advances.
pub fn share(mut budget: usize, needs: &[usize]) -> Vec<usize> {
    let mut shares = vec![0; needs.len()];
    let mut order: Vec<usize> = (0..needs.len()).collect();
    order.sort_by_key(|&i| needs[i]);
    for (done, &i) in order.iter().enumerate() {
        shares[i] = needs[i].min(budget.div_ceil(needs.len() - done)).min(budget);
        budget -= shares[i];
    }
    shares
}

fn common_prefix(a: &[i32], b: &[i32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn free(cached: &[i32], touched: u64) -> View<'_> {
        View { cached, planned: &[], busy: false, touched }
    }

    fn busy(cached: &[i32]) -> View<'_> {
        View { cached, planned: &[], busy: true, touched: 9 }
    }

    #[test]
    fn a_conversation_goes_on_where_it_was() {
        let slots = [free(&[], 0), free(&[1, 2, 3, 4], 5), free(&[1, 2, 9], 7)];
        assert_eq!(choose(&slots, &[1, 2, 3, 4, 5, 6], true), Some(Start::Here { slot: 1, keep: 4 }));
    }

    #[test]
    fn the_last_token_of_the_prompt_is_always_computed() {
        let slots = [free(&[1, 2, 3], 1)];
        assert_eq!(choose(&slots, &[1, 2, 3], true), Some(Start::Here { slot: 0, keep: 2 }));
    }

    #[test]
    fn a_shared_system_prompt_does_not_cost_a_conversation_its_cache() {
        let slots = [free(&[1, 2, 3, 4, 5, 6, 7, 8], 5), free(&[9, 9], 1), free(&[8, 8], 2)];
        assert_eq!(choose(&slots, &[1, 2, 3, 7, 7], true), Some(Start::Copy { slot: 1, from: 0, keep: 3 }));
        // With nothing else free, it does.
        assert_eq!(choose(&slots[..1], &[1, 2, 3, 7, 7], true), Some(Start::Here { slot: 0, keep: 3 }));
    }

    #[test]
    fn a_busy_slot_lends_what_it_has() {
        let slots = [busy(&[1, 2, 3, 4]), free(&[], 0)];
        assert_eq!(choose(&slots, &[1, 2, 3, 7], true), Some(Start::Copy { slot: 1, from: 0, keep: 3 }));
        assert_eq!(choose(&[busy(&[1])], &[1, 2], true), None);
    }

    #[test]
    fn the_same_prompt_is_not_worked_through_twice() {
        let prompt: Vec<i32> = (0..100).collect();
        let working = View { planned: &prompt, ..busy(&prompt[..10]) };
        assert_eq!(choose(&[working, free(&[], 0)], &prompt, true), Some(Start::Wait));
        let done = View { planned: &prompt, ..busy(&prompt[..99]) };
        assert_eq!(
            choose(&[done, free(&[], 0)], &prompt, true),
            Some(Start::Copy { slot: 1, from: 0, keep: 99 })
        );
    }

    #[test]
    fn a_recurrent_cache_is_continued_whole_or_not_at_all() {
        let slots = [free(&[1, 2, 3], 1), free(&[1, 2, 3, 4], 2)];
        assert_eq!(choose(&slots, &[1, 2, 3, 5], false), Some(Start::Here { slot: 0, keep: 3 }));
        assert_eq!(choose(&slots, &[1, 2], false), Some(Start::Here { slot: 0, keep: 0 }));
    }

    #[test]
    fn shares_are_equal_and_nothing_is_left_over() {
        assert_eq!(share(100, &[10, 500, 500]), [10, 45, 45]);
        assert_eq!(share(7, &[3, 3, 3]), [3, 2, 2]);
        assert_eq!(share(100, &[1, 2]), [1, 2]);
        assert!(share(100, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn a_share_is_never_too_much(budget in 0usize..600, needs in proptest::collection::vec(0usize..400, 0..9)) {
            let shares = share(budget, &needs);
            prop_assert!(shares.iter().zip(&needs).all(|(share, need)| share <= need));
            let total: usize = shares.iter().sum();
            prop_assert_eq!(total, budget.min(needs.iter().sum()));
        }

        #[test]
        fn a_choice_is_free_and_keeps_what_is_there(
            caches in proptest::collection::vec((proptest::collection::vec(0i32..3, 0..8), any::<bool>()), 1..5),
            prompt in proptest::collection::vec(0i32..3, 1..8),
            divisible: bool,
        ) {
            let slots: Vec<View<'_>> = caches
                .iter()
                .enumerate()
                .map(|(i, (cached, busy))| View { cached, planned: &[], busy: *busy, touched: i as u64 })
                .collect();
            match choose(&slots, &prompt, divisible) {
                None => prop_assert!(slots.iter().all(|slot| slot.busy)),
                Some(Start::Wait) => prop_assert!(false, "nothing is worth waiting for"),
                Some(Start::Here { slot, keep }) => {
                    prop_assert!(!slots[slot].busy && keep < prompt.len());
                    prop_assert_eq!(&slots[slot].cached[..keep], &prompt[..keep]);
                    prop_assert!(divisible || keep == 0 || keep == slots[slot].cached.len());
                }
                Some(Start::Copy { slot, from, keep }) => {
                    prop_assert!(divisible && !slots[slot].busy && slot != from && keep < prompt.len());
                    prop_assert_eq!(&slots[from].cached[..keep], &prompt[..keep]);
                }
            }
        }
    }
}
