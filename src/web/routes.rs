//! What is where.

use super::api::{self, Refusal};
use super::server::Peer;
use super::{Web, upgrade};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use std::convert::Infallible;
use std::sync::Arc;
use warp::filters::BoxedFilter;
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

/// All routes. Every request gets an answer: the last route refuses what no other took.
#[must_use]
pub fn all(web: Arc<Web>) -> BoxedFilter<(Response,)> {
    let with_web = warp::any().map(move || Arc::clone(&web));

    let page = warp::path::end()
        .and(warp::get())
        .and(with_web.clone())
        .and(warp::header::headers_cloned())
        .map(|web: Arc<Web>, headers: HeaderMap| web.page.reply(headers.get(header::IF_NONE_MATCH)))
        .or(warp::path::end().and_then(|| not_allowed("GET")));

    let room = warp::path!("api" / "room")
        .and(warp::post())
        .and(with_web.clone())
        .map(|web: Arc<Web>| api::new_private_room(&web))
        .or(warp::path!("api" / "room").and_then(|| not_allowed("POST")));

    let history = warp::path!("api" / "room" / String / "history")
        .and(warp::get())
        .and(query())
        .and(with_web.clone())
        .then(|name: String, query: String, web: Arc<Web>| async move {
            let answer = api::history(&web, &name, &query).await;
            // Also a private room's: its history is as secret as its name, which the asker gave. Refusals too, so that
            // a page can tell a room that does not exist from a node that does not answer.
            api::for_any_page(answer.unwrap_or_else(|refusal| refusal.json()))
        })
        .or(warp::path!("api" / "room" / String / "history").and_then(|_| not_allowed("GET")));

    let cluster = warp::path!("api" / "cluster")
        .and(warp::get())
        .and(with_web.clone())
        .map(|web: Arc<Web>| api::for_any_page(api::cluster(&web)))
        .or(warp::path!("api" / "cluster").and_then(|| not_allowed("GET")));

    let websocket = warp::path!("api" / "room" / String / "websocket")
        .and(warp::get())
        .and(query())
        .and(with_web.clone())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<Peer>())
        .map(|name: String, query: String, web: Arc<Web>, headers, on_upgrade, peer| {
            let request = upgrade::Request { name: &name, query: &query, headers, on_upgrade, peer };
            upgrade::upgrade(&web, request).unwrap_or_else(|refusal| refusal.json())
        })
        .or(warp::path!("api" / "room" / String / "websocket").and_then(|_| not_allowed("GET")));

    let health = text_route("healthz", with_web.clone(), |_| {
        api::with_type(StatusCode::OK, "text/plain; charset=utf-8", "ok\n".to_owned())
    });
    let ready = text_route("readyz", with_web.clone(), api::ready);
    let metrics = text_route("metrics", with_web, api::metrics);

    // Warp takes `/healthz/` for `/healthz`; there is no such path here.
    let trailing_slash = warp::path::full().and_then(|path: FullPath| async move {
        let path = path.as_str();
        if path.len() > 1 && path.ends_with('/') { Ok(not_found(path)) } else { Err(warp::reject()) }
    });
    let nothing = warp::path::full().map(|path: FullPath| not_found(path.as_str()));

    trailing_slash
        .or(websocket)
        .or(history)
        .or(room)
        .or(cluster)
        .or(page)
        .or(health)
        .or(ready)
        .or(metrics)
        .recover(method_not_allowed)
        .or(nothing)
        .map(Reply::into_response)
        .boxed()
}

fn text_route(
    path: &'static str,
    with_web: impl Filter<Extract = (Arc<Web>,), Error = Infallible> + Clone + Send + Sync + 'static,
    answer: fn(&Web) -> Response,
) -> BoxedFilter<(Response,)> {
    let get = warp::path(path).and(warp::path::end()).and(warp::get()).and(with_web);
    let other = warp::path(path).and(warp::path::end()).and_then(|| not_allowed("GET"));
    get.map(move |web: Arc<Web>| answer(&web)).or(other).unify().boxed()
}

fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Clone {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

/// A known path with another method.
#[derive(Debug)]
struct NotAllowed(&'static str);

impl warp::reject::Reject for NotAllowed {}

async fn not_allowed(allowed: &'static str) -> Result<Response, Rejection> {
    Err(warp::reject::custom(NotAllowed(allowed)))
}

async fn method_not_allowed(rejection: Rejection) -> Result<Response, Rejection> {
    let Some(NotAllowed(allowed)) = rejection.find::<NotAllowed>() else { return Err(rejection) };
    let mut response = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed").json();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    Ok(response)
}

/// A refusal as programs or as people read it.
fn not_found(path: &str) -> Response {
    let refusal = Refusal::new(StatusCode::NOT_FOUND, "Not found");
    if path == "/api" || path.starts_with("/api/") { refusal.json() } else { refusal.text() }
}
