//! The stores: one conformance suite for all, and what each must survive.

#![cfg(test)]

#[path = "stores/conformance.rs"]
mod conformance;
#[path = "stores/etcd.rs"]
mod etcd;
#[path = "stores/given.rs"]
mod given;
#[path = "stores/redb.rs"]
mod redb;
#[path = "support/etcd.rs"]
mod support_etcd;
