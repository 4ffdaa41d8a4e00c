//! What the crowd knows of the mesh, together: what one of it is told, all know, as if each had a
//! follower of brokers. Gateways that learn nothing would ask for the same for ever.

use std::cell::RefCell;
use std::sync::Arc;

use proto::control::Handover;
use proto::knowledge::Knowledge;
use proto::mesh::Mesh;
use proto::record::Member;

pub(super) struct Learned {
    inner: RefCell<(Mesh, Arc<Knowledge>)>,
}

impl Learned {
    pub(super) fn new(mesh: Mesh) -> Learned {
        let knowledge = Arc::new(Knowledge::of(&mesh));
        Learned {
            inner: RefCell::new((mesh, knowledge)),
        }
    }

    pub(super) fn knowledge(&self) -> Arc<Knowledge> {
        self.inner.borrow().1.clone()
    }

    pub(super) fn handle(&self, handover: &Handover) {
        let (mesh, knowledge) = &mut *self.inner.borrow_mut();
        for entry in &handover.entries {
            let _ = mesh.handle_entry(entry);
        }
        for member in &handover.members {
            let _ = Member::read(member).map(|member| mesh.handle_member(&member));
        }
        let now = Knowledge::clone(knowledge)
            .with_ledger(mesh)
            .with_members(mesh);
        if now != **knowledge {
            *knowledge = Arc::new(now);
        }
    }
}
