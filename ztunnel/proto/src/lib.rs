//! Wire types, generated from `proto/`: discovery, workloads, authorization, certificates, enrollment.
//!
//! The `.proto` files are ours; the field numbers are the contract with the peers. Names follow the wire, so
//! modules mirror the packages. Unknown fields and unknown enum numbers survive decoding as the standard says:
//! what they mean is for the reader to decide.

#![expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    reason = "generated code"
)]

/// Envoy's discovery protocol.
pub mod envoy {
    /// Services.
    pub mod service {
        /// Discovery.
        pub mod discovery {
            /// Version 3, the incremental half.
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
    }
}

/// Istio's own messages.
pub mod istio {
    /// Policies.
    pub mod security {
        tonic::include_proto!("istio.security");
    }

    /// Version 1.
    pub mod v1 {
        /// Certificates.
        pub mod auth {
            tonic::include_proto!("istio.v1.auth");
        }
    }

    /// Workloads and services.
    pub mod workload {
        tonic::include_proto!("istio.workload");

        /// Enrollment by the CNI plugin's node agent.
        pub mod zds {
            tonic::include_proto!("istio.workload.zds");
        }
    }
}

/// The type URL of workloads and services.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// The type URL of policies.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
