//! The reset button: the same microVM begins anew, and runs its workload from the start.

mod busy;
mod fresh;
mod guest;
mod moments;

use crate::harness::installed::{self, Kernel};
use crate::harness::{Case, netns, vm};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, kernel) in [
        ("a_reset_guest_begins_anew", installed::own as fn() -> Kernel),
        ("a_reset_guest_begins_anew_on_6_1", || installed::stock("6.1.")),
        ("a_reset_guest_begins_anew_on_6_12", || installed::stock("6.12.")),
    ] {
        cases.push(vm(name, move || fresh::a_reset_guest_begins_anew(kernel)));
    }
    cases.push(vm("a_reset_leaves_no_memory", fresh::a_reset_leaves_no_memory).alone());
    cases.push(vm("a_guest_that_hangs_is_reset", moments::a_guest_that_hangs_is_reset));
    cases.push(vm("resets_at_any_time", moments::resets_at_any_time));
    cases.push(vm("resets_under_load", || busy::resets_under_load(installed::own(), 20)));
    cases.push(vm("resets_under_load_on_a_stock_kernel", || busy::resets_under_load(installed::stock("6.12."), 5)));
    cases.push(vm("a_reset_of_every_device", || netns::run(|| busy::a_reset_of_every_device(installed::own()))));
    cases.push(vm("a_reset_of_every_device_on_a_stock_kernel", || {
        netns::run(|| busy::a_reset_of_every_device(installed::stock("6.12.")))
    }));
    cases.push(vm("a_reset_with_output_under_way", busy::a_reset_with_output_under_way));
    cases.push(vm("a_paused_guest_is_reset", moments::a_paused_guest_is_reset));
    cases.push(vm("a_reset_by_a_confined_thread", moments::a_reset_by_a_confined_thread));
    cases.push(vm("resets_and_the_end", moments::resets_and_the_end));
    cases
}
