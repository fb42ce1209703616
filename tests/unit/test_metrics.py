"""The exposition of counters and histograms."""

from lightvl.api.metrics import Counter, Histogram, Metrics


def test_a_labelled_counter_escapes_its_values() -> None:
    counter = Counter("answers_total", "Answers.", "status")
    counter.add(value="200")
    counter.add(2, 'a"b\\c\n')
    assert counter.lines() == [
        "# HELP lightvl:answers_total Answers.",
        "# TYPE lightvl:answers_total counter",
        'lightvl:answers_total{status="200"} 1',
        'lightvl:answers_total{status="a\\"b\\\\c\\n"} 2',
    ]


def test_a_histogram_counts_up_to_and_including_its_bounds() -> None:
    histogram = Histogram("wait_seconds", "Wait.", (0.5, 1.0))
    for value in (0.5, 0.75, 3.0, 3.0):
        histogram.observe(value)
    assert histogram.lines()[2:] == [
        'lightvl:wait_seconds_bucket{le="0.5"} 1',
        'lightvl:wait_seconds_bucket{le="1.0"} 2',
        'lightvl:wait_seconds_bucket{le="+Inf"} 4',
        "lightvl:wait_seconds_sum 7.25",
        "lightvl:wait_seconds_count 4",
    ]


def test_the_engines_values_stand_beside_the_fronts() -> None:
    engine = {
        'image_cache_bytes{tier="gpu"}': 5.0,
        'image_cache_bytes{tier="host"}': 7.5,
        "image_cache_hits_total": 3.0,
    }
    text = Metrics().render({"num_requests_queued": 2}, engine)
    lines = text.splitlines()
    assert text.endswith("\n")
    assert lines.count("# TYPE lightvl:image_cache_bytes gauge") == 1
    assert 'lightvl:image_cache_bytes{tier="host"} 7.5' in lines
    assert "# TYPE lightvl:image_cache_hits_total counter" in lines
    assert "lightvl:image_cache_hits_total 3" in lines
    assert "lightvl:num_requests_queued 2" in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
