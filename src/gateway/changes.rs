//! Switches and workers as events: what has become of them since the last time somebody looked.

use std::cell::RefCell;
use std::convert::Infallible;
use std::time::Duration;

use super::Gateway;
use crate::control::Control;
use crate::control::events::{What, WorkerEvent};
use crate::dataplane::offload::switches::{States, Switch};

/// Between two looks: a switch that is turned and turned back meanwhile was not turned.
const SECOND: Duration = Duration::from_secs(1);

/// Looks once a second. Never ends.
pub(super) async fn serve(control: &RefCell<Control<Gateway>>) -> Infallible {
    let mut before = control.borrow().dataplane.switches();
    begin(&mut control.borrow_mut());
    loop {
        tokio::time::sleep(SECOND).await;
        let now = control.borrow().dataplane.switches();
        if now != before {
            turned(&mut control.borrow_mut(), before, now);
            before = now;
        }
    }
}

/// What workers could not have when they started.
fn begin(control: &mut Control<Gateway>) {
    let without = control.dataplane.waiting().filter_map(|(worker, chosen)| {
        let reason = Some(chosen.reason.as_deref()?.into());
        Some(What::Worker { worker: Some(worker), reason, change: WorkerEvent::Poll })
    });
    for what in without.collect::<Vec<_>>() {
        tell(control, what);
    }
}

fn turned(control: &mut Control<Gateway>, before: States, now: States) {
    for switch in Switch::ALL {
        let off = now.reason(switch);
        if off != before.reason(switch) {
            tell(control, What::Switch { switch, off });
        }
    }
}

/// Notes an event of the gateway's own. A drop-in has nobody to tell.
pub(super) fn tell(control: &mut Control<Gateway>, what: What) {
    if let Some(leases) = &control.leases {
        control.events.add(leases.now(), what);
    }
}
