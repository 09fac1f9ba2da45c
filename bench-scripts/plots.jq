# Bars with ranges as SVG, readable on light and dark: `plots` gives {file, svg} for each load of each section.
include "tables";

def escaped: gsub("&"; "&amp;") | gsub("<"; "&lt;");
# What is drawn of a load: the measure, its unit, and what the thin line means.
def drawn: kind as $kind | if $kind == "tcp" then ["gbit_s", "Gbit/s", "smallest to largest"]
    elif $kind == "udp" then ["kpps", "thousand datagrams/s that arrived", "smallest to largest"]
    else ["p50_us", "µs", "median to p99"] end;
def is_ours: test("^(ringway|metrics|null)");

# Bars of [{name, value, from, to}].
def bars($title; $note): (map(.to) | max) as $most | (length * 30 + 76) as $height
    | def x: . / (if $most > 0 then $most else 1 end) * 420 + 150 | . * 10 | round / 10;
    "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 \($height)\" font-family=\"sans-serif\" font-size=\"13\">
<style>
text { fill: #1f2328 } .theirs { fill: #8c959f } .ours { fill: #0969da } .line { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .theirs { fill: #6e7681 } .ours { fill: #4493f8 } .line { stroke: #e6edf3 } }
</style>
<text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\">\($title | escaped)</text>
<text x=\"12\" y=\"44\">\($note | escaped)</text>
" + ([to_entries[] | .key as $n | .value | (58 + $n * 30) as $y
        | "<text x=\"140\" y=\"\($y + 15)\" text-anchor=\"end\">\(.name | escaped)</text>
<rect x=\"150\" y=\"\($y)\" width=\"\((.value | x) - 150)\" height=\"20\" class=\"\(if .name | is_ours then "ours" else "theirs" end)\"/>
<line x1=\"\(.from | x)\" y1=\"\($y + 10)\" x2=\"\(.to | x)\" y2=\"\($y + 10)\" class=\"line\"/>
<text x=\"\((.to | x) + 8)\" y=\"\($y + 15)\">\(.value | digits(if . < 10 then 2 else 0 end))</text>
"] | add) + "</svg>";

# Of the section that is the input; [] where nothing was measured.
def rows($load; $what): . as $all | [.peers[].name | select(. != "plain") | . as $name | $all.summary[$name][$load] // empty
    | select(.[$what] != null)
    | if .[$what] | type == "object" then {name: $name, value: .[$what].median, from: .[$what].min, to: .[$what].max}
      else {name: $name, value: .[$what], from: .[$what], to: .p99_us} end];
def without($load; $what): .summary.plain[$load][$what] | if . == null then ""
    else "; without a tunnel \(if type == "object" then .median else . end | digits(1))" end;

def section_plots: . as $all | .loads | ordered | map(select(. != "memory"))[] | . as $load | drawn as [$what, $unit, $line]
    | ({file: "\($all.name)-\($load)", what: $what, note: "\($unit); line: \($line)\($all | without($load; $what))"},
       (select(startswith("tcp-1")) | {file: "\($all.name)-\($load)-cpu", what: "gateway_s_per_gb",
            note: "gateway, processor seconds per gigabyte; line: smallest to largest"}))
    | . as $plot | $all | rows($load; $plot.what) | select(length > 0)
    | {load: $load, file: "\($plot.file).svg", svg: bars("\($load | title): \($all.title)"; $plot.note)};
