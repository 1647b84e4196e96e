#!/bin/sh
# Makes the certificates that tests use: `sh test/certs/make.sh`. They are in the repository, valid for a hundred years,
# so that tests need no openssl. They protect nothing.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key" 2>/dev/null; }

# ca NAME: a CA of its own
ca() {
  key "$1"
  openssl req -x509 -new -key "$1.key" -subj "/CN=xen-migration test $1" -days 36500 -out "$1.crt" \
    -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign'
}

# leaf NAME CA CN FROM TO EXTENSIONS…: a certificate of that CA
leaf() {
  name=$1 by=$2 cn=$3 from=$4 to=$5
  shift 5
  key "$name"
  openssl req -new -key "$name.key" -subj "/CN=$cn" -out "$work/csr"
  printf '%s\n' "$@" > "$work/ext"
  : > "$work/index"
  printf '[ca]\ndefault_ca=c\n[c]\ndatabase=%s/index\nnew_certs_dir=%s\nrand_serial=yes\ndefault_md=sha256\nunique_subject=no\npolicy=p\n[p]\ncommonName=supplied\n' \
    "$work" "$work" > "$work/conf"
  openssl ca -batch -notext -config "$work/conf" -cert "$by.crt" -keyfile "$by.key" -in "$work/csr" \
    -startdate "$from" -enddate "$to" -extfile "$work/ext" -out "$name.crt" 2> /dev/null
}

# crl NAME CA FROM TO [REVOKED…]: that CA's list of revoked certificates
crl() {
  name=$1 by=$2 from=$3 to=$4
  shift 4
  : > "$work/index"
  for revoked; do
    openssl ca -batch -config "$work/conf" -cert "$by.crt" -keyfile "$by.key" -revoke "$revoked.crt" 2> /dev/null
  done
  openssl ca -gencrl -config "$work/conf" -cert "$by.crt" -keyfile "$by.key" \
    -crl_lastupdate "$from" -crl_nextupdate "$to" -out "$name.crl" 2> /dev/null
}

server='extendedKeyUsage=serverAuth'
client='extendedKeyUsage=clientAuth'
now=20250101000000Z
late=21250101000000Z

ca ca
ca other-ca
leaf server ca server $now $late "$server" 'subjectAltName=DNS:localhost,DNS:receiver.example,IP:127.0.0.1,IP:::1'
leaf server2 ca server2 $now $late "$server" 'subjectAltName=DNS:localhost,IP:127.0.0.1'
leaf elsewhere ca elsewhere $now $late "$server" 'subjectAltName=DNS:elsewhere.example'
leaf old-server ca old-server 20200101000000Z 20210101000000Z "$server" 'subjectAltName=DNS:localhost,IP:127.0.0.1'
leaf other-server other-ca other-server $now $late "$server" 'subjectAltName=DNS:localhost,IP:127.0.0.1'
leaf client ca 'dom0 a' $now $late "$client" 'subjectAltName=DNS:a.example,IP:192.0.2.7'
leaf nameless ca dom0-b $now $late "$client"
leaf wild ca wild $now $late "$client" 'subjectAltName=DNS:*.example'
leaf old-client ca old-client 20200101000000Z 20210101000000Z "$client" 'subjectAltName=DNS:a.example'
leaf other-client other-ca other-client $now $late "$client" 'subjectAltName=DNS:a.example'
crl none ca $now $late
crl revoked ca $now $late client server2
crl old ca 20200101000000Z 20210101000000Z
crl other-ca other-ca $now $late
rm -f ca.key other-ca.key
