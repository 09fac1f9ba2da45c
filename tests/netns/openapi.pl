# openapi.pl: checks that the document on its first line is one of OpenAPI 3, and each exchange against it: a JSON object
# per line with method, path (as the document has it), status, request and response (none, or JSON). What is wrong is
# printed, a line each.
use strict;
use warnings;
use JSON::Validator;
use Mojo::JSON qw(decode_json);

my $schema = JSON::Validator->new->schema(decode_json scalar <STDIN>)->schema;
my @wrong  = map {"document: $_"} @{$schema->errors};
while (my $line = <STDIN>) {
    my $exchange = decode_json $line;
    my $body     = sub {
        my $value = shift;
        return sub { return {exists => defined $value, value => $value, content_type => 'application/json'} };
    };
    my ($method, $path, $status) = @{$exchange}{qw(method path status)};
    my @errors;
    # What the API refuses may be anything.
    push @errors, $schema->validate_request([lc $method, $path], {body => $body->($exchange->{request}),
        path => sub { return {exists => 1, value => '100.64.0.1'} }}) if $status < 300;
    if (not $schema->get([paths => $path, lc $method, responses => $status])) {
        push @errors, "no such status";
    } elsif ($status != 204) {
        push @errors, $schema->validate_response([lc $method, $path, $status],
            {status => $status, body => $body->($exchange->{response})});
    }
    push @wrong, map {"$method $path $status: $_"} @errors;
}
print "$_\n" for @wrong;
