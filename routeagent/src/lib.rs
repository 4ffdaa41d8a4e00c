//! Programs the kernel of a node so that the mesh's prefixes are reached through it: observe, plan,
//! diff, apply. What is wanted is one value that prints like `ip route`; what is found is read from
//! the kernel, never assumed.

pub mod facts;
