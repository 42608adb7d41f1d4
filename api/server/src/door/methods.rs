//! Every RPC that a door serves, and who may call it. What is not in the table is for admins alone.

use hearth_types::identity::Identity;

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Members of `system:masters`.
    Admins,
    /// Devices of this region.
    Devices,
    /// Servers of this region, and nobody else.
    Servers,
    /// Anybody, a stranger included.
    Anyone,
}

/// A method and its rule.
#[derive(Debug)]
pub(super) struct Method {
    pub(super) service: &'static str,
    pub(super) name: &'static str,
    pub(super) allowed: Allowed,
}

const fn method(service: &'static str, name: &'static str, allowed: Allowed) -> Method {
    Method { service, name, allowed }
}

static METHODS: [Method; 41] = [
    method("hearth.v1.Resources", "Get", Allowed::Admins),
    method("hearth.v1.Resources", "List", Allowed::Admins),
    method("hearth.v1.Resources", "Watch", Allowed::Admins),
    method("hearth.v1.Resources", "Create", Allowed::Admins),
    method("hearth.v1.Resources", "Update", Allowed::Admins),
    method("hearth.v1.Resources", "UpdateStatus", Allowed::Admins),
    method("hearth.v1.Resources", "UpdateEphemeralContainers", Allowed::Admins),
    method("hearth.v1.Resources", "Apply", Allowed::Admins),
    method("hearth.v1.Resources", "ApplyAll", Allowed::Admins),
    method("hearth.v1.Resources", "Patch", Allowed::Admins),
    method("hearth.v1.Resources", "Delete", Allowed::Admins),
    method("hearth.v1.Pods", "Logs", Allowed::Admins),
    method("hearth.v1.Pods", "Exec", Allowed::Admins),
    method("hearth.v1.Pods", "Attach", Allowed::Admins),
    method("hearth.v1.Pods", "PortForward", Allowed::Admins),
    method("hearth.v1.Pods", "Stats", Allowed::Admins),
    method("hearth.v1.Pods", "Line", Allowed::Admins),
    method("hearth.v1.Region", "Info", Allowed::Admins),
    method("hearth.v1.Region", "CreateToken", Allowed::Admins),
    method("hearth.v1.Region", "ListTokens", Allowed::Admins),
    method("hearth.v1.Region", "DeleteToken", Allowed::Admins),
    method("hearth.v1.Region", "Backup", Allowed::Admins),
    method("hearth.v1.Region", "Dnssec", Allowed::Admins),
    method("hearth.v1.Region", "Acme", Allowed::Admins),
    method("hearth.v1.Enrollment", "Join", Allowed::Anyone),
    method("hearth.v1.RelayEnrollment", "Join", Allowed::Anyone),
    // By its key, which its Relay has.
    method("hearth.v1.RelayEnrollment", "Renew", Allowed::Anyone),
    method("hearth.v1.Devices", "Session", Allowed::Devices),
    method("hearth.v1.Dials", "Dial", Allowed::Servers),
    method("hearth.v1.Dials", "Sessions", Allowed::Servers),
    method("hearth.v1.Peers", "Call", Allowed::Servers),
    method("hearth.v1.Members", "Join", Allowed::Anyone),
    method("hearth.v1.Members", "Admit", Allowed::Servers),
    method("hearth.v1.Members", "List", Allowed::Admins),
    method("hearth.v1.Members", "Remove", Allowed::Admins),
    method("hearth.v1.Members", "TransferLeadership", Allowed::Admins),
    // For a device that cannot verify this server yet, and has no name here yet.
    method("hearth.v1.Recovery", "Statement", Allowed::Anyone),
    method("hearth.v1.Recovery", "HandIn", Allowed::Anyone),
    method("hearth.v1.Recovery", "Describe", Allowed::Admins),
    method("hearth.v1.Recovery", "SetKey", Allowed::Admins),
    method("hearth.v1.Recovery", "Finish", Allowed::Admins),
];

/// What stands for every path that is no method, so that metrics have a bounded number of labels.
static UNKNOWN: Method = method("unknown", "unknown", Allowed::Admins);

/// The method of a request's path.
pub(super) fn of_path(path: &str) -> &'static Method {
    let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    parts
        .and_then(|(service, name)| METHODS.iter().find(|method| method.service == service && method.name == name))
        .unwrap_or(&UNKNOWN)
}

impl Method {
    /// Whom it takes, for those who are refused.
    pub(super) fn takes(&self) -> &'static str {
        match self.allowed {
            Allowed::Admins => "a member of the group system:masters",
            Allowed::Devices => "a device of the region",
            Allowed::Servers => "a server of the region",
            Allowed::Anyone => "anybody",
        }
    }

    /// Whether somebody may call it.
    pub(super) fn permits(&self, identity: &Identity) -> bool {
        match self.allowed {
            Allowed::Anyone => true,
            Allowed::Devices => matches!(identity, Identity::Device { .. }) || identity.is_admin(),
            // An admin is no server: a call's sender is which one it is.
            Allowed::Servers => identity.is_server(),
            Allowed::Admins => identity.is_admin(),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_of_the_protocol_that_a_door_serves_has_a_rule() {
        let files = prost_types::FileDescriptorSet::decode(hearth_proto::DESCRIPTORS).expect("descriptors");
        let mut seen = 0;
        for file in &files.file {
            for service in &file.service {
                // Devices serve this one, over their tunnels.
                if service.name() == "DeviceDoor" {
                    continue;
                }
                for one in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), one.name());
                    assert_ne!(of_path(&path).service, "unknown", "{path}");
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, METHODS.len());
        for path in ["", "/", "x", "/hearth.v1.Resources", "/hearth.v1.Resources/Nothing", "/a/b/c"] {
            assert_eq!(of_path(path).service, "unknown", "{path}");
        }
    }
}
