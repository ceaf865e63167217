//! LibreTranslate's API, as its clients ask it: [`routes`], bodies and keys ([`fields`]), errors in its words ([`words`]),
//! translated files ([`files`]).

pub(crate) mod fields;
pub(crate) mod files;
pub(crate) mod routes;
pub(crate) mod words;
