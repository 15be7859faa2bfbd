#!/usr/bin/env bash
# scripts/download_clevr_dataset.sh [--dry-run] [DIR]   download CLEVRER's videos to DIR/train, DIR/val, DIR/test (data/CLEVRER)
#
# An interrupted download continues if the server still has the same file. A split appears only when it is complete, and an
# existing one is not downloaded again. Free disk space is checked before downloading and before unpacking. Each archive's
# sha256 is printed; no official checksums are known.
# If VIDM_SOURCES is set, the base addresses in it, separated by spaces, are tried in turn instead of the public one.
set -u
# shellcheck source=scripts/fetch.sh
. "$(dirname "$0")/fetch.sh"
sources=${VIDM_SOURCES:-https://data.csail.mit.edu/clevrer/videos}
parts="train/video_train validation/video_validation test/video_test"

fail() { echo "error: $*" >&2; exit 2; }
folder=
dry=
for word in "$@"; do
    case $word in
        --dry-run) dry=yes ;;
        -*) fail "unknown option $word; usage: $0 [--dry-run] [DIR]" ;;
        *) [ -z "$folder" ] || fail "give one folder, not $folder and $word"; folder=$word ;;
    esac
done
folder=${folder:-data/CLEVRER}
for tool in curl python3; do
    command -v $tool >/dev/null || fail "$tool is not installed: sudo apt-get install $tool"
done

split_of() { case $1 in train/*) echo train ;; validation/*) echo val ;; *) echo test ;; esac; }
gigabytes() { awk -v b="$1" 'BEGIN { printf "%.1f GB", b / 1e9 }'; }

# free_bytes: print the free space on the disk of the folder, which may not exist yet.
free_bytes() {
    local existing=$folder
    while [ ! -e "$existing" ]; do existing=$(dirname "$existing"); done
    df -Pk "$existing" | awk 'NR == 2 { printf "%.0f", $4 * 1024 }'
}

wanted=
for part in $parts; do
    if [ -d "$folder/$(split_of "$part")" ]; then
        echo "$folder/$(split_of "$part") exists already"
    else
        wanted="$wanted $part"
    fi
done
[ -n "$wanted" ] || exit 0

if [ -n "$dry" ]; then
    for part in $wanted; do
        for source in $sources; do echo "would download $source/$part.zip and unpack it into $folder/$(split_of "$part")"; done
    done
    echo "$(gigabytes "$(free_bytes)") are free; whether that is enough is checked before the download starts"
    exit 0
fi

# Find the source of each part and check that everything fits. An archive is deleted once it is unpacked, and videos do
# not compress further, so the disk needs space for every archive once and for the largest twice.
plan=
need=0
largest=0
for part in $wanted; do
    size=
    for source in $sources; do
        size=$(size_of "$source/$part.zip") && break
    done
    [ -n "$size" ] || fail "cannot reach $source/$part.zip: without a network, unpack copies of the archives into" \
        "$folder/train, $folder/val and $folder/test, or generate data with scripts/make_synthetic_dataset.py"
    plan="$plan $source/$part.zip $size $part"
    need=$((need + size - $(bytes_of "$folder/.$(split_of "$part").zip.part")))
    [ "$size" -gt "$largest" ] && largest=$size
done
need=$((need + largest))
free=$(free_bytes)
[ "$free" -ge "$need" ] || fail "$(gigabytes $need) are needed in $folder, but only $(gigabytes "$free") are free"

mkdir -p "$folder" || fail "cannot create the folder $folder"

# unpacked_bytes ARCHIVE: print the size of what an archive contains; zipfile unpacks no more than that.
unpacked_bytes() {
    python3 -I -c 'import sys, zipfile; print(sum(member.file_size for member in zipfile.ZipFile(sys.argv[1]).infolist()))' \
        "$1" 2>/dev/null
}

# unpack ARCHIVE SPLIT: unpack, and check every file against its checksum in the archive.
unpack() {
    rm -rf "$folder/.$2.unpacking" && mkdir "$folder/.$2.unpacking" &&
        python3 -I -m zipfile -e "$1" "$folder/.$2.unpacking" 2>/dev/null && mv "$folder/.$2.unpacking" "$folder/$2"
}

# shellcheck disable=SC2086 # three words per part
set -- $plan
while [ $# -gt 0 ]; do
    address=$1 size=$2 split=$(split_of "$3")
    shift 3
    archive=$folder/.$split.zip.part
    echo "downloading $address, $(gigabytes "$size")"
    fetch "$address" "$archive" "$size" || fail "the download of $address is incomplete: run this again to continue it"
    echo "$address  sha256 $(sha256sum "$archive" | cut -d ' ' -f 1)"
    need=$(unpacked_bytes "$archive")
    free=$(free_bytes)
    [ "${need:-0}" -le "$free" ] ||
        fail "$address unpacks to $(gigabytes "$need"), but only $(gigabytes "$free") are free: free some space and run this again"
    if ! unpack "$archive" "$split"; then
        rm -rf "$archive" "$archive.from" "$folder/.$split.unpacking"
        fail "$address is not a valid zip archive, or the disk is full: the file was deleted; run this again"
    fi
    rm -f "$archive" "$archive.from"
    echo "$folder/$split: $(find "$folder/$split" -name '*.mp4' | wc -l) videos"
done
