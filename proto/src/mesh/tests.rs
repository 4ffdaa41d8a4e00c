//! What is taken and what is refused, seen from outside.

mod bits;
mod chain;
mod fork;
mod knowledge;
mod order;
mod scene;
mod shown;
mod uses;
