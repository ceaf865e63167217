//! The name of a request at the next server: ours, with how many servers it came through.
//!
//! It joins the logs of both. And a chain of servers that leads back to its beginning would go round for ever, each with
//! a request of its own; so it ends after [`MOST`].

use backplane_plugin::prelude::*;

/// Servers of ours that a request may come through.
const MOST: u32 = 8;
/// As long as the name of a request may be.
const LONGEST: usize = 128;

/// `id` for the next server.
///
/// # Errors
/// When it came through too many.
pub fn next(id: &str) -> Result<String> {
    let (name, hops) = match id.rsplit_once("-hop") {
        Some((name, hops)) => match hops.parse::<u32>() {
            Ok(hops) => (name, hops),
            Err(_) => (id, 0),
        },
        None => (id, 0),
    };
    if MOST <= hops {
        let message = format!(
            "the request came through {hops} servers, each of which asks the next: does the `upstream` of a model lead back to its own server?"
        );
        return Err(Error::new(Code::FailedPrecondition, message).with_reason("call_cycle"));
    }
    let name = &name[..name.floor_char_boundary(LONGEST - "-hop8".len())];
    Ok(format!("{name}-hop{}", hops + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_are_counted_and_end() {
        assert_eq!(next("a-b").unwrap(), "a-b-hop1");
        assert_eq!(next("a-hopper").unwrap(), "a-hopper-hop1");
        let mut id = "x".repeat(200);
        for _ in 0..MOST {
            id = next(&id).unwrap();
            assert!(id.len() <= LONGEST);
        }
        assert_eq!(next(&id).unwrap_err().reason.as_deref(), Some("call_cycle"));
    }
}
