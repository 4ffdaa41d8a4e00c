//! The route agent puts back what others take away, and touches nothing else.

#![cfg(test)]
#![forbid(unsafe_code)]

use routeagent::Settings;
use tests::lab::skip;
use tests::node_kernel::{NodeKernel, told};

#[test]
fn everything_is_there_soon_after_the_start() {
    if skip("routes", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("routes").unwrap();
    let handle = kernel.start(Settings::default()).unwrap();
    kernel.until_whole().unwrap();
    assert_eq!(told(&handle.problems()), "");
}
