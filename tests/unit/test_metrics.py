"""The exposition of counters and histograms."""

from lightvl.api.metrics import Metrics


def test_values_stand_under_the_names_of_the_field() -> None:
    metrics = Metrics()
    metrics.finished.labels("stop").inc()
    metrics.rejected.labels("queue_full").inc(2)
    for seconds in (0.5, 0.75, 300.0, 300.0):
        metrics.time_to_first_token.observe(seconds)
    metrics.observe_media("decode", 0.25)
    lines = metrics.render({}).decode().splitlines()
    assert 'lightvl:request_success_total{finished_reason="stop"} 1.0' in lines
    assert 'lightvl:request_rejected_total{reason="queue_full"} 2.0' in lines
    assert 'lightvl:time_to_first_token_seconds_bucket{le="0.5"} 1.0' in lines
    assert 'lightvl:time_to_first_token_seconds_bucket{le="1.0"} 2.0' in lines
    assert 'lightvl:time_to_first_token_seconds_bucket{le="+Inf"} 4.0' in lines
    assert "lightvl:time_to_first_token_seconds_count 4.0" in lines
    assert "lightvl:image_decode_seconds_sum 0.25" in lines
    assert "lightvl:image_fetch_seconds_count 0.0" in lines


def test_the_engines_values_stand_beside_the_fronts() -> None:
    values = {
        'image_cache_bytes{tier="gpu"}': 5.0,
        'image_cache_bytes{tier="host"}': 7.5,
        "image_cache_hits_total": 3.0,
        "num_requests_queued": 2,
    }
    text = Metrics().render(values).decode()
    lines = text.splitlines()
    assert text.endswith("\n")
    assert lines.count("# TYPE lightvl:image_cache_bytes gauge") == 1
    assert 'lightvl:image_cache_bytes{tier="host"} 7.5' in lines
    assert "# TYPE lightvl:image_cache_hits_total counter" in lines
    assert "lightvl:image_cache_hits_total 3.0" in lines
    assert "lightvl:num_requests_queued 2.0" in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_two_fronts_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.finished.labels("stop").inc()
    assert b'finished_reason="stop"' not in second.render({})
