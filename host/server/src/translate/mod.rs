//! LibreTranslate's API, as its clients ask it: [`routes`], what can be translated into what ([`served`]), bodies and keys
//! ([`fields`]), errors in its words ([`words`]), translated files ([`files`]).

pub(crate) mod fields;
pub(crate) mod files;
pub(crate) mod routes;
pub(crate) mod served;
pub(crate) mod words;
