pub mod json_scan;
pub mod logprobs;
pub mod sampling;
pub mod slots;
pub mod stop;
pub mod template;
pub mod tools;
