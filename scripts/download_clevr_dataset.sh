#!/usr/bin/env bash
# scripts/download_clevr_dataset.sh [--dry-run] [DIR]   fetch CLEVRER's videos into DIR/train, DIR/val, DIR/test (data/CLEVRER)
#
# An interrupted download goes on where it stopped; a split appears under its name only when it is whole, and one that is
# there is not fetched again. The disk is checked for room first, and each archive's sha256 is printed: no official sums
# are known. VIDM_SOURCES, a list of base addresses, is tried in turn instead of the public one.
set -u
sources=${VIDM_SOURCES:-https://data.csail.mit.edu/clevrer/videos}
parts="train/video_train validation/video_validation test/video_test"

fail() { echo "error: $*" >&2; exit 2; }
folder=
dry=
for word in "$@"; do
    case $word in
        --dry-run) dry=yes ;;
        -*) fail "$word is not known; usage: $0 [--dry-run] [DIR]" ;;
        *) [ -z "$folder" ] || fail "one folder will do, not $folder and $word"; folder=$word ;;
    esac
done
folder=${folder:-data/CLEVRER}
for tool in curl python3; do
    command -v $tool >/dev/null || fail "$tool is not installed: sudo apt-get install $tool"
done

split_of() { case $1 in train/*) echo train ;; validation/*) echo val ;; *) echo test ;; esac; }
bytes_of() { stat -c %s "$1" 2>/dev/null || echo 0; }
gigabytes() { awk -v b="$1" 'BEGIN { printf "%.1f GB", b / 1e9 }'; }

# room: bytes free where the folder is or will be.
room() {
    local there=$folder
    while [ ! -e "$there" ]; do there=$(dirname "$there"); done
    df -Pk "$there" | awk 'NR == 2 { printf "%.0f", $4 * 1024 }'
}

# size_of ADDRESS: the archive's bytes by the server's word; false when it cannot be reached or does not say.
size_of() {
    local headers
    headers=$(curl --fail --location --head --silent --connect-timeout 20 "$1") || return
    tr -d '\r' <<<"$headers" | awk 'tolower($1) == "content-length:" { n = $2 } END { if (n > 0) print n; else exit 1 }'
}

wanted=
for part in $parts; do
    if [ -d "$folder/$(split_of $part)" ]; then
        echo "$folder/$(split_of $part) is there already"
    else
        wanted="$wanted $part"
    fi
done
[ -n "$wanted" ] || exit 0

if [ -n "$dry" ]; then
    for part in $wanted; do
        for source in $sources; do echo "would fetch $source/$part.zip and unpack it into $folder/$(split_of $part)"; done
    done
    echo "$(gigabytes "$(room)") are free there; whether that is enough is checked before anything is fetched"
    exit 0
fi

# Where each part comes from, and whether all of it fits: an archive goes once it is unpacked, and videos shrink no
# further, so what has to fit is every archive once and the largest of them twice.
plan=
need=0
largest=0
for part in $wanted; do
    size=
    for source in $sources; do
        size=$(size_of "$source/$part.zip") && break
    done
    [ -n "$size" ] || fail "cannot reach $source/$part.zip: without a network, unpack the archives from elsewhere" \
        "into $folder/train, $folder/val and $folder/test, or make data with scripts/make_synthetic_dataset.py"
    plan="$plan $source/$part.zip $size $part"
    need=$((need + size - $(bytes_of "$folder/.$(split_of $part).zip.part")))
    [ "$size" -gt "$largest" ] && largest=$size
done
need=$((need + largest))
free=$(room)
[ "$free" -ge "$need" ] || fail "$(gigabytes $need) are needed in $folder, and $(gigabytes "$free") are free there"

mkdir -p "$folder" || fail "cannot make the folder $folder"

# fetch ADDRESS FILE SIZE: go on with a part that is there; begin anew where the server cannot, or the part is too long.
fetch() {
    [ "$(bytes_of "$2")" -gt "$3" ] && rm -f "$2"
    [ "$(bytes_of "$2")" = "$3" ] && return
    curl --fail --location --retry 2 --connect-timeout 20 --progress-bar --continue-at - --output "$2" "$1" && return
    [ $? = 33 ] && rm -f "$2" && curl --fail --location --progress-bar --output "$2" "$1"
}

# unpack ARCHIVE SPLIT: every file is checked against the archive's own sums on the way.
unpack() {
    rm -rf "$folder/.$2.unpacking" && mkdir "$folder/.$2.unpacking" &&
        python3 -m zipfile -e "$1" "$folder/.$2.unpacking" 2>/dev/null && mv "$folder/.$2.unpacking" "$folder/$2"
}

# shellcheck disable=SC2086 # three words a part
set -- $plan
while [ $# -gt 0 ]; do
    address=$1 size=$2 split=$(split_of "$3")
    shift 3
    archive=$folder/.$split.zip.part
    echo "fetching $address, $(gigabytes "$size")"
    fetch "$address" "$archive" "$size" || fail "$address could not be fetched whole: start again, and it goes on there"
    echo "$address  sha256 $(sha256sum "$archive" | cut -d ' ' -f 1)"
    if ! unpack "$archive" "$split"; then
        rm -rf "$archive" "$folder/.$split.unpacking"
        fail "$address is no whole zip archive, or the disk is full: thrown away; start again"
    fi
    rm -f "$archive"
    echo "$folder/$split: $(find "$folder/$split" -name '*.mp4' | wc -l) videos"
done
