use std::net::Ipv4Addr;
use std::path::Path;

use isobar_objects::{ObjectHead, Pod};

use crate::error::LabError;
use crate::plan::DNS_ADDRESS;

/// The files a pod sees in `/etc`.
pub(super) fn write(dir: &Path, pod: &Pod, ip: Ipv4Addr) -> Result<(), LabError> {
    let domain = isobar_types::CLUSTER_DOMAIN;
    let namespace = pod.namespace();
    let resolv = format!(
        "search {namespace}.svc.{domain} svc.{domain} {domain}\n\
         nameserver {DNS_ADDRESS}\n\
         options ndots:5\n"
    );
    let spec = pod.spec.as_ref();
    let mut hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{ip}\t{}\n",
        pod.name()
    );
    for alias in spec
        .iter()
        .flat_map(|spec| spec.host_aliases.iter().flatten())
    {
        let names: Vec<&str> = alias
            .hostnames
            .iter()
            .flatten()
            .map(String::as_str)
            .collect();
        hosts.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    let write = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text)
            .map_err(LabError::io(format!("writing a pod's {name}")))
    };
    std::fs::create_dir_all(dir).map_err(LabError::io(format!("making {}", dir.display())))?;
    write("resolv.conf", &resolv)?;
    write("hosts", &hosts)?;
    write("hostname", &format!("{}\n", pod.name()))
}
