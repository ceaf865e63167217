//! Language models in GGUF, served by llama.cpp.
pub mod engine;
pub mod sys;
