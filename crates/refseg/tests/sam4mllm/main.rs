//! SAM4MLLM: its logic, held to recorded cases, and the whole of it, with a language model that
//! says what a test tells it to.

mod cases;
mod llava;
mod model;
mod scripted;
mod settings;
