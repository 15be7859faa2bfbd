# shellcheck shell=bash
# Resumable downloads, for the scripts that source this file.
#
#   fetch ADDRESS PART [LENGTH]   download ADDRESS to the file PART, or continue an interrupted download
#
# PART.from contains the address and the response headers that PART began with. A part of another address or length is
# deleted. A server continues it only if its file is still the same (If-Range); otherwise the download starts again.
# Whatever a server says is matched against a pattern before it is used. Links are deleted and not followed.

bytes_of() { stat -c %s "$1" 2>/dev/null || echo 0; }

# These read response headers from standard input; only the last response counts, after any redirects.
header_of() {
    tr -d '\r' | awk -v name="$1:" '
        /^HTTP\// { value = "" }
        tolower($1) == name { value = substr($0, length(name) + 1); sub(/^[ \t]+/, "", value) }
        END { print value }'
}
status_of() { awk '/^HTTP\// { status = $2 } END { print status }'; }
length_of() {
    local length
    length=$(header_of content-length)
    [[ $length =~ ^[0-9]{1,18}$ ]] && echo "$((10#$length))"
}
# validator_of: print what identifies the version of a file, its strong ETag or else its date.
validator_of() {
    local headers tag date strong='^"[!#-~]*"$' rfc1123='^[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT$'
    headers=$(cat)
    tag=$(header_of etag <<<"$headers")
    date=$(header_of last-modified <<<"$headers")
    if [[ $tag =~ $strong ]]; then echo "$tag"; elif [[ $date =~ $rfc1123 ]]; then echo "$date"; fi
}

# curl_to PART [OPTION...] ADDRESS: download to PART and print the response headers.
curl_to() {
    curl --proto =http,https --fail --location --retry 2 --connect-timeout 20 --progress-bar --dump-header - --output "$@"
}

# continued ADDRESS PART LENGTH VALIDATOR: download the rest of a part. Returns 2 if the download must start again.
continued() {
    local headers code now
    headers=$(curl_to "$2" --continue-at - --header "If-Range: $4" "$1")
    code=$?
    case $code:$(status_of <<<"$headers") in
        0:206) ;;
        0:* | 33:* | 22:416) return 2 ;;
        *) return 1 ;;
    esac
    now=$(validator_of <<<"$headers")
    [ "${now:-$4}" = "$4" ] && [ "$(bytes_of "$2")" = "$3" ] || return 2
}

fetch() {
    local address=$1 part=$2 length validator code
    if [ -f "$part" ] && [ ! -L "$part" ] && [ ! -L "$part.from" ] &&
        [ "$(head -n 1 "$part.from" 2>/dev/null)" = "$address" ]; then
        length=$(length_of <"$part.from")
        validator=$(validator_of <"$part.from")
        if [ -n "$length" ] && [ "$length" = "${3:-$length}" ]; then
            [ "$(bytes_of "$part")" = "$length" ] && return
            if [ -n "$validator" ] && [ "$(bytes_of "$part")" -lt "$length" ]; then
                continued "$address" "$part" "$length" "$validator"
                code=$?
                [ $code = 2 ] || return $code
            fi
        fi
    fi
    rm -f "$part" "$part.from"
    { echo "$address" && curl_to "$part" "$address"; } >"$part.from" && return
    [ -f "$part" ] || rm -f "$part.from"
    return 1
}
