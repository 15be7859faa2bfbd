#!/usr/bin/env bash
# scripts/download_models.sh [NAME...]   download spynet, i3d, c3d, motion (default: all) to pretrained_models/
#
# An interrupted download continues if the server still has the same file, and a file gets its name only when it is
# complete. The script prints the sha256 of each file and checks its first digits if they are known. It also writes the
# sha256 to downloads.sha256 in that folder: evaluation uses an I3D or C3D, which are programs, unasked only if it is
# there. Optional environment variables:
# VIDM_SOURCES   base addresses to try in order, instead of the public addresses
# VIDM_MODELS    the folder to download to
set -u
cd "$(dirname "$0")/.." || exit
. scripts/fetch.sh
folder=${VIDM_MODELS:-pretrained_models}

# name  file  first digits of the sha256, or - if unknown  address
models="
spynet spynet_20210409-c6c1bd09.pth c6c1bd09 https://download.openmmlab.com/mmediting/restorers/basicvsr/spynet_20210409-c6c1bd09.pth
i3d i3d_torchscript.pt - https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1
c3d c3d_ucf101.pt - https://www.dropbox.com/s/jxpu7avzdc9n97q/c3d_ucf101.pt?dl=1
motion checkpoint_accum_clevrer_robust_400000.pth.tar - https://www.cis.jhu.edu/~kmei1/share/vidm/checkpoints/checkpoint_accum_clevrer_robust_400000.pth.tar
"

fail() { echo "error: $*" >&2; exit 2; }
command -v curl >/dev/null || fail "curl is not installed: sudo apt-get install curl"
known=$(echo "$models" | awk 'NF { printf "%s ", $1 }')
for name in "$@"; do
    case " $known" in *" $name "*) ;; *) fail "unknown model $name: choose from $known" ;; esac
done
mkdir -p "$folder" || fail "cannot create the folder $folder"

# download FILE SHA ADDRESS...: succeeds if the file exists or was downloaded and has the expected digits.
download() {
    local file=$1 sha=$2 part=$folder/.$1.part found address
    shift 2
    [ -f "$folder/$file" ] && { echo "$folder/$file exists already"; return; }
    for address in "$@"; do
        echo "downloading $file from $address"
        fetch "$address" "$part" || continue
        found=$(sha256sum "$part" | cut -d ' ' -f 1)
        if [ "$sha" != - ] && [ "${found#"$sha"}" = "$found" ]; then
            echo "deleted the file from $address: its sha256 is $found, but should begin with $sha" >&2
            rm -f "$part" "$part.from"
            continue
        fi
        is_file "$folder/downloads.sha256" || rm -f "$folder/downloads.sha256"
        echo "$found  $file" >>"$folder/downloads.sha256" && mv "$part" "$folder/$file" && rm -f "$part.from" &&
            echo "$folder/$file  sha256 $found" && return
    done
    return 1
}

failed=
while read -r name file sha address; do
    [ -n "$name" ] || continue
    case " $* " in "  " | *" $name "*) ;; *) continue ;; esac
    addresses=$address
    [ -n "${VIDM_SOURCES:-}" ] && addresses=$(for base in $VIDM_SOURCES; do echo "$base/$file"; done)
    # shellcheck disable=SC2086 # one word per address
    download "$file" "$sha" $addresses || failed="$failed $file"
done <<<"$models"
[ -z "$failed" ] || fail "could not download:$failed. Get the files elsewhere and put them into $folder (see its README.md)"
