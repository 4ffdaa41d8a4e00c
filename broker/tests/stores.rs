//! The stores: one conformance suite for all, and what each must survive.

#![cfg(test)]

#[path = "stores/conformance.rs"]
mod conformance;
#[path = "stores/damage.rs"]
mod damage;
#[path = "stores/disk.rs"]
mod disk;
#[path = "stores/etcd.rs"]
mod etcd;
#[path = "stores/etcd_access.rs"]
mod etcd_access;
#[path = "stores/given.rs"]
mod given;
#[path = "stores/killed.rs"]
mod killed;
#[path = "stores/power.rs"]
mod power;
#[path = "stores/redb.rs"]
mod redb;
#[path = "support/certificates.rs"]
mod support_certificates;
#[path = "support/etcd.rs"]
mod support_etcd;
