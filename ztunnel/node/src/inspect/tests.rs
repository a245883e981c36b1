use ztunnel_mesh::name::ServiceName;
use ztunnel_mesh::workload::{Addresses, Health};
use ztunnel_mesh::{Delta, Mesh, Service, Upsert, Workload};

use super::*;

fn mesh_of(count: usize) -> Mesh {
    let workload = |number: usize| {
        let mut workload = Workload::new(&format!("Kubernetes//Pod/shop/{number}"));
        workload.namespace = if number.is_multiple_of(2) {
            "even"
        } else {
            "odd"
        }
        .into();
        workload.name = format!("pod-{number:06}").into();
        workload.addresses = Addresses::One([10, 0, 0, 1].into());
        if number == 0 {
            workload.health = Health::Unhealthy;
        }
        workload.memberships = [Arc::new(ztunnel_mesh::workload::Membership {
            service: ServiceName::new("shop", "all.shop"),
            ports: Box::default(),
        })]
        .into();
        Upsert::Workload(Arc::new(workload))
    };
    let service = Service::new(ServiceName::new("shop", "all.shop"));
    let mut upserts: Vec<_> = (0..count).map(workload).collect();
    upserts.push(Upsert::Service(Arc::new(service)));
    let removals = Vec::new();
    Mesh::default().apply(Delta { upserts, removals })
}

fn wanted(namespace: Option<&str>, limit: usize) -> WantedOfMesh {
    WantedOfMesh {
        namespace: namespace.map(str::to_owned),
        node: None,
        limit,
    }
}

async fn all(mut from: mpsc::Receiver<Page>) -> (usize, Rows, End) {
    let mut pages = 1;
    let mut page = from.recv().await.unwrap();
    while page.end.is_none() {
        let next = from.recv().await.unwrap();
        page.rows.append(next.rows);
        page.end = next.end;
        pages += 1;
    }
    assert!(from.recv().await.is_none(), "nothing after the end");
    (pages, page.rows, page.end.unwrap())
}

#[tokio::test]
async fn a_long_list_comes_in_pages_and_in_order() {
    let mesh = mesh_of(2_000);
    let list = |namespace, limit| {
        let (mesh, wanted) = (mesh.clone(), wanted(namespace, limit));
        all(pages(
            move || mesh::workloads(&mesh, &wanted),
            |all| Rows::Workloads(all.iter().map(|one| WorkloadRow::new(one)).collect()),
        ))
    };
    let (pages, rows, end) = list(None, usize::MAX).await;
    let Rows::Workloads(rows) = rows else {
        panic!("{rows:?}");
    };
    assert_eq!((pages, rows.len()), (2_000_usize.div_ceil(PAGE), 2_000));
    let total = End::new(2_000, 2_000, 2_000);
    assert_eq!((end, end.left_out), (total, 0));
    let key = |row: &WorkloadRow| (row.namespace.clone(), row.name.clone());
    assert!(rows.is_sorted_by_key(key));
    let (_, rows, end) = list(Some("odd"), 300).await;
    let Rows::Workloads(rows) = rows else {
        panic!("{rows:?}");
    };
    assert_eq!((rows.len(), &*rows[0].name), (300, "pod-000001"));
    assert_eq!((end.total, end.matched, end.left_out), (2_000, 1_000, 700));
    let (pages, rows, end) = list(Some("none"), 300).await;
    assert_eq!((pages, rows), (1, Rows::Workloads(Vec::new())));
    assert_eq!((end.total, end.matched, end.left_out), (2_000, 0, 0));
}

#[tokio::test]
async fn nothing_is_made_that_nobody_takes() {
    let made = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let from = pages(
        || ((0..100 * PAGE).collect(), End::default()),
        move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Rows::Policies(Vec::new())
        },
    );
    drop(from);
    // The thread ends: it holds the only other reference.
    let mut looked = 0;
    while Arc::strong_count(&made) > 1 {
        looked += 1;
        assert!(looked < 10_000, "it does not end");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let made = made.load(std::sync::atomic::Ordering::SeqCst);
    assert!(made <= 2, "{made}");
}

#[test]
fn a_service_counts_its_endpoints() {
    let mesh = mesh_of(10);
    let (services, end) = mesh::services(&mesh, &wanted(None, 10));
    assert_eq!(end, End::new(1, 1, 1));
    let row = ServiceRow::new(&mesh, &services[0]);
    assert_eq!((row.endpoints, row.healthy_endpoints), (10, 9));
}
