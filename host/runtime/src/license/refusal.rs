//! What a caller is told who was not let in.

use crate::error::{Error, ErrorCode};
use backplane_registry::license::{Denial, State};
use std::time::Duration;

/// Names the plugin, the file, the licence, the member of it, and what helps. No folder: a caller may be anybody.
pub fn refusal(plugin: &str, denial: Denial) -> Error {
    let Denial { state, code, file, licence, field, reason, remedy, passes } = denial;
    let which = match (&licence, &file) {
        (Some(licence), Some(file)) => format!("licence `{licence}` (`{file}`)"),
        (None, Some(file)) => format!("licence file `{file}`"),
        _ => "licence".to_owned(),
    };
    let message = format!("plugin `{plugin}`: {which}: `{field}`: {reason}; {remedy}");
    let kind = match state {
        State::Unknown => ErrorCode::Unavailable,
        _ if passes => ErrorCode::ResourceExhausted,
        _ => ErrorCode::PermissionDenied,
    };
    let mut error = Error::new(kind, message)
        .with_reason(code)
        .with_detail("plugin", plugin)
        .with_detail("state", state.as_str())
        .with_detail("field", field);
    if let Some(licence) = licence {
        error = error.with_detail("licence", licence);
    }
    if passes || state == State::Unknown {
        error = error.with_retry_after(Duration::from_secs(1));
    }
    error
}
