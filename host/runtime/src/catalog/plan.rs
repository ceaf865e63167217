//! Whether a model fits, and who has to go. Pure.

use std::sync::Arc;

/// An open model, as far as memory is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its name.
    pub name: Arc<str>,
    /// Bytes it takes.
    pub bytes: u64,
    /// When it was last used, in any unit that grows.
    pub last_used: u64,
    /// Whether it may be closed: idle, and not pinned.
    pub evictable: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Models to close first, least recently used first.
    pub evicts: Vec<Arc<str>>,
    /// Whether it fits after that.
    pub fits: bool,
}

/// Plans the opening of a model that needs `needs` bytes, with `free` bytes free on the machine and `budget` bytes for
/// all models together. Closes no more than it must, least recently used first; and nobody when that would not help.
pub fn decide(needs: u64, free: u64, budget: u64, open: &[Open]) -> Decision {
    let used: u64 = open.iter().map(|model| model.bytes).sum();
    let fits =
        |freed: u64| needs <= free.saturating_add(freed) && used.saturating_sub(freed) + needs <= budget;
    let mut order: Vec<&Open> = open.iter().filter(|model| model.evictable).collect();
    order.sort_by(|a, b| (a.last_used, &a.name).cmp(&(b.last_used, &b.name)));
    let (mut freed, mut evicts) = (0, Vec::new());
    for model in order {
        if fits(freed) {
            break;
        }
        freed += model.bytes;
        evicts.push(model.name.clone());
    }
    if fits(freed) { Decision { evicts, fits: true } } else { Decision { evicts: Vec::new(), fits: false } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn open(name: &str, bytes: u64, last_used: u64, evictable: bool) -> Open {
        Open { name: name.into(), bytes, last_used, evictable }
    }

    #[test]
    fn the_least_recently_used_goes_first_and_only_if_it_helps() {
        let models = [open("old", 40, 1, true), open("new", 40, 2, true), open("pinned", 10, 0, false)];
        assert_eq!(decide(5, 100, 100, &models), Decision { evicts: vec![], fits: true });
        assert_eq!(decide(30, 100, 100, &models), Decision { evicts: vec!["old".into()], fits: true });
        assert_eq!(decide(60, 20, 100, &models).evicts.len(), 2);
        assert_eq!(decide(95, 100, 100, &models), Decision { evicts: vec![], fits: false });
        assert_eq!(decide(90, 5, 1000, &models), Decision { evicts: vec![], fits: false });
    }

    proptest! {
        #[test]
        fn a_plan_that_fits_keeps_to_both_limits(
            needs in 0u64..200, free in 0u64..200, budget in 0u64..400,
            models in proptest::collection::vec((0u64..100, 0u64..50, any::<bool>()), 0..8),
        ) {
            let models: Vec<_> =
                models.iter().enumerate().map(|(i, &(b, l, e))| open(&i.to_string(), b, l, e)).collect();
            let plan = decide(needs, free, budget, &models);
            let freed: u64 = models.iter().filter(|m| plan.evicts.contains(&m.name)).map(|m| m.bytes).sum();
            let used: u64 = models.iter().map(|m| m.bytes).sum();
            if plan.fits {
                prop_assert!(needs <= free + freed && used - freed + needs <= budget);
                prop_assert!(models.iter().all(|m| m.evictable || !plan.evicts.contains(&m.name)));
            } else {
                prop_assert!(plan.evicts.is_empty());
            }
        }
    }
}
