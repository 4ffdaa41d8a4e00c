//! Joining, leaving and following against brokers of the tests' own: honest ones as far as a
//! test needs it, and hostile ones.

#[cfg(test)]
mod cloud;
#[cfg(test)]
mod double;
#[cfg(test)]
mod follow;
#[cfg(test)]
mod gossip;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod join;
#[cfg(test)]
mod leaving;
#[cfg(test)]
mod relay;
#[cfg(test)]
mod scratch;
#[cfg(test)]
mod start;
#[cfg(test)]
mod stores;
#[cfg(test)]
mod tcp_only;
#[cfg(test)]
mod through;
#[cfg(test)]
mod with_broker;
#[cfg(test)]
mod world;
