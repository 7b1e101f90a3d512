//! Served pods and one outside the mesh, in network namespaces of the test's own, with real
//! redirection, a made-up mesh and a made-up authority; in this process, or in a real one.
//!
//! Each scenario runs inside `unshare`, so that nothing outside is touched, root or not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agent;
mod conformance;
mod ejections;
mod http;
mod modes;
mod names;
mod process;
mod revocation;
mod rig;
mod scenarios;
mod silence;
mod stage;
mod telemetry;
mod upgrade;

use std::process::{Command, Stdio};

const SCENARIO: &str = "ISOBAR_TEST_SCENARIO";

fn apart(scenario: &str) {
    let me = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let output = command
        .env(SCENARIO, scenario)
        .args(["--net", "--mount"])
        .arg(me)
        .args(["--exact", "inside", "--ignored", "--nocapture"])
        .stderr(if std::env::var_os("ISOBAR_TEST_LONG").is_some() {
            Stdio::inherit()
        } else {
            Stdio::piped()
        })
        .output()
        .unwrap();
    // Kept for a failure: the harness shows it only then.
    println!("{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{scenario}: {}", output.status);
}

#[test]
#[ignore = "started by the tests below in namespaces of its own"]
fn inside() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let workers = isobar_runtime::Workers::start("worker", 2).unwrap();
    let w = workers.all().to_vec();
    let scenario = std::env::var(SCENARIO).unwrap_or_default();
    runtime.block_on(async {
        match scenario.as_str() {
            "traffic" => scenarios::all(w, false).await,
            "next-door" => scenarios::all(w, true).await,
            "next-door-denial" => conformance::live_denial(w, true).await,
            "denial" => conformance::denial(w).await,
            "nobody" => conformance::nobody(w).await,
            "ejections" => ejections::left_out(w, false).await,
            "next-door-ejections" => ejections::left_out(w, true).await,
            "live-denial" => conformance::live_denial(w, false).await,
            "denial-while-dialling" => conformance::denial_while_dialling(w).await,
            "closed-later" => conformance::closed_later(w).await,
            "addresses" => conformance::addresses(w).await,
            "proxied" => conformance::proxied(w, true).await,
            "proxied-shown" => conformance::proxied(w, false).await,
            "names" => names::all(w).await,
            "names-fair" => names::fair(w).await,
            "names-ipv4" => names::without_ipv6(w).await,
            "twice" => agent::twice(w).await,
            "moved" => agent::moved(w).await,
            "missing" => agent::missing(w).await,
            "away" => agent::away(w).await,
            "taken" => agent::taken(w).await,
            "socks5" => modes::socks5(w).await,
            "dedicated" => modes::dedicated().await,
            "revoked" => revocation::revoked(false).await,
            "next-door-revoked" => revocation::revoked(true).await,
            "dead-peer" => silence::dead_peer().await,
            "own-pod" => modes::own_pod().await,
            "admin" => telemetry::admin().await,
            "series" => telemetry::series().await,
            "replace" => upgrade::replace().await,
            "crash" => upgrade::crash().await,
            "terminate" => upgrade::terminate().await,
            "descriptors" => upgrade::descriptors().await,
            other => panic!("no scenario {other:?}"),
        }
    });
    workers.join();
}

#[test]
fn r_13_carries_connections_and_keeps_no_descriptor() {
    apart("traffic");
}

#[test]
fn carries_connections_between_pods_without_a_tunnel() {
    apart("next-door");
}

#[test]
fn a_new_denial_cuts_what_has_no_tunnel() {
    apart("next-door-denial");
}

#[test]
fn check_03_a_pod_added_twice_is_bound_once() {
    apart("twice");
}

#[test]
fn check_04_a_pod_added_elsewhere_moves() {
    apart("moved");
}

#[test]
fn check_05_a_pod_missing_in_the_snapshot_ends() {
    apart("missing");
}

#[test]
fn check_06_pods_outlive_the_agents_connection() {
    apart("away");
}

#[test]
fn check_07_a_taken_port_is_tried_again() {
    apart("taken");
}

#[test]
fn check_26_a_denial_is_401_and_told() {
    apart("denial");
}

#[test]
fn check_27_nobody_listening_is_503_and_told() {
    apart("nobody");
}

#[test]
fn check_37_r_18_a_new_denial_cuts_what_is_open() {
    apart("live-denial");
}

#[test]
fn a_new_denial_cuts_who_waits_for_the_application() {
    apart("denial-while-dialling");
}

#[test]
fn what_was_passed_through_ends_when_the_way_out_is_closed() {
    apart("closed-later");
}

#[test]
fn endpoints_that_take_no_connection_are_left_out() {
    apart("ejections");
}

#[test]
fn endpoints_next_door_that_take_no_connection_are_left_out() {
    apart("next-door-ejections");
}

#[test]
fn check_40_applications_see_the_clients_address() {
    apart("addresses");
}

#[test]
fn check_41_a_proxy_header_comes_first_over_loopback() {
    apart("proxied");
}

#[test]
fn check_41_a_proxy_header_with_the_peers_address() {
    apart("proxied-shown");
}

#[test]
fn check_45_names_on_the_wire() {
    apart("names");
}

#[test]
fn check_45_without_ipv6_the_mesh_has_no_aaaa() {
    apart("names-ipv4");
}

#[test]
fn names_are_answered_to_each_pod_in_turn() {
    apart("names-fair");
}

#[test]
fn check_46_r_01_r_02_r_03_a_successor_takes_over_without_a_refusal() {
    apart("replace");
}

#[test]
fn check_47_the_end_is_told_and_comes_in_time() {
    apart("terminate");
}

#[test]
fn check_48_admin_pages_have_istios_shape() {
    apart("admin");
}

#[test]
fn check_49_the_dashboards_series_are_there() {
    apart("series");
}

#[test]
fn socks5_goes_where_captured_connections_go() {
    apart("socks5");
}

#[test]
fn the_revoked_are_cut_off_at_once_and_refused() {
    apart("revoked");
}

#[test]
fn the_revoked_are_cut_off_next_door_as_well() {
    apart("next-door-revoked");
}

#[test]
fn r_14_a_peer_that_is_gone_without_a_word_is_noticed() {
    apart("dead-peer");
}

#[test]
fn dedicated_mode_serves_its_one_workload() {
    apart("dedicated");
}

#[test]
fn the_process_takes_tunnels_for_its_own_pod() {
    apart("own-pod");
}

#[test]
fn r_22_a_killed_process_leaks_nothing_and_comes_back() {
    apart("crash");
}

#[test]
fn r_11_without_descriptors_open_connections_go_on() {
    apart("descriptors");
}
